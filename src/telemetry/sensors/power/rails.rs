//! The rails behind the power chip of a Raspberry Pi 5.
//!
//! Their sum is less than what the board draws: USB devices, HATs, an NVMe disk, the fan and the losses of the chip
//! are not in it. A figure for the whole board would be somebody's fit to one board, so none is made of it.

use super::{SANE_UW, watts};
use crate::protocol::{Method, Reading};
use crate::telemetry::sensors::mailbox::Mailbox;
use std::time::{Duration, Instant};

const SCOPE: &str = "pmic_rails";

/// Who asks sooner hears the same again: a short request asks twice within milliseconds, and the firmware converts
/// 26 voltages for each answer.
const SHORTEST: Duration = Duration::from_millis(100);

/// What the rails said last.
#[derive(Debug, Default)]
pub(super) struct Rails(Option<(Instant, Reading)>);

impl Rails {
    pub fn read(&mut self, mailbox: &mut Mailbox, now: Instant) -> Option<Reading> {
        if let Some((at, reading)) = &self.0
            && now.saturating_duration_since(*at) < SHORTEST
        {
            return Some(reading.clone());
        }
        let sane = |value: &f64| SANE_UW.contains(&((value * 1e6) as i64));
        let value = mailbox.rails_watts(now).filter(sane);
        let reading = value.map(|value| watts(value, Method::Measured, mailbox.rails_source(), SCOPE));
        self.0 = reading.clone().map(|reading| (now, reading));
        reading
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::sensors::mailbox::tests::{Firmware, RAILS, RAILS_WATTS, mailbox};

    #[test]
    fn the_power_of_the_rails_says_where_it_is_from_and_that_it_is_not_the_boards() {
        let (mut mailbox, _) = mailbox(Firmware::Says("throttled=0x0", RAILS));
        let reading = Rails::default().read(&mut mailbox, Instant::now()).expect("a Pi 5");
        assert!((reading.value - RAILS_WATTS).abs() < 1e-6, "{reading:?}");
        assert_eq!((reading.unit, reading.method), ("W", Method::Measured));
        assert_eq!(
            (reading.source.as_str(), reading.scope.as_str()),
            ("/dev/vcio_gencmd pmic_read_adc", SCOPE)
        );
    }

    #[test]
    fn who_asks_too_soon_hears_the_power_before_and_the_firmware_is_not_asked() {
        let (mut mailbox, (firmware, asked)) = mailbox(Firmware::Says("throttled=0x0", RAILS));
        let (mut rails, now) = (Rails::default(), Instant::now());
        let first = rails.read(&mut mailbox, now);
        let other = "X_A current(1)=1.0A\nX_V volt(2)=2.0V";
        *firmware.lock().expect("one thread") = Firmware::Says("throttled=0x0", other);
        assert_eq!(rails.read(&mut mailbox, now + Duration::from_millis(99)), first);
        assert_eq!(asked.lock().expect("one thread").len(), 1);
        let second = rails.read(&mut mailbox, now + Duration::from_millis(100)).expect("still a Pi 5");
        assert_eq!(second.value, 2.0);
    }

    #[test]
    fn rails_that_say_nothing_any_more_are_not_remembered() {
        let (mut mailbox, (firmware, _)) = mailbox(Firmware::Says("throttled=0x0", RAILS));
        let (mut rails, now) = (Rails::default(), Instant::now());
        assert!(rails.read(&mut mailbox, now).is_some());
        *firmware.lock().expect("one thread") = Firmware::Fails;
        assert_eq!(rails.read(&mut mailbox, now + Duration::from_secs(1)), None);
        assert_eq!(rails.read(&mut mailbox, now + Duration::from_secs(1)), None);
    }
}
