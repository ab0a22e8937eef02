//! The rails behind the PMIC (power management chip) of a Raspberry Pi 5.
//!
//! Their sum is less than what the board draws: USB devices, HATs, an NVMe disk, the fan and the losses of the chip
//! are not in it. It is not extrapolated to the whole board, since such a fit would hold for one board only.
//! Deliberately knows no mailbox protocol.

use super::{SANE_UW, watts};
use crate::protocol::{Method, Reading};
use crate::telemetry::sensors::rpi_firmware::Mailbox;
use std::time::Instant;

const SCOPE: &str = "pmic_rails";

/// The power of the rails now.
pub(super) fn read(mailbox: &mut Mailbox, now: Instant) -> Option<Reading> {
    let sane = |value: &f64| SANE_UW.contains(&((value * 1e6) as i64));
    let value = mailbox.rails_watts(now).filter(sane)?;
    Some(watts(value, Method::Measured, mailbox.rails_source(), SCOPE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::sensors::rpi_firmware::tests::{Firmware, RAILS, RAILS_WATTS, mailbox};

    #[test]
    fn the_power_of_the_rails_names_its_source_and_scope() {
        let (mut mailbox, _) = mailbox(Firmware::Says("throttled=0x0", RAILS));
        let reading = read(&mut mailbox, Instant::now()).expect("a Pi 5");
        assert!((reading.value - RAILS_WATTS).abs() < 1e-6, "{reading:?}");
        assert_eq!((reading.unit, reading.method), ("W", Method::Measured));
        assert_eq!(
            (reading.source.as_str(), reading.scope.as_str()),
            ("/dev/vcio_gencmd pmic_read_adc", SCOPE)
        );
    }

    #[test]
    fn each_reading_asks_the_firmware_and_nothing_is_remembered() {
        let (mut mailbox, (firmware, asked)) = mailbox(Firmware::Says("throttled=0x0", RAILS));
        let now = Instant::now();
        assert!(read(&mut mailbox, now).is_some());
        let other = "X_A current(1)=1.0A\nX_V volt(2)=2.0V";
        *firmware.lock().expect("one thread") = Firmware::Says("throttled=0x0", other);
        assert_eq!(read(&mut mailbox, now).expect("still a Pi 5").value, 2.0);
        assert_eq!(asked.lock().expect("one thread").len(), 2);
        *firmware.lock().expect("one thread") = Firmware::Fails;
        assert_eq!(read(&mut mailbox, now), None);
    }
}
