//! Devices that failed are not read for a while: where the clock line of an I2C bus is held low, each read of a
//! chip behind it blocks until the adapter's timeout, about a second, and the reading thread also serves clients.
//! Deliberately knows no sensor: it sees paths, durations and errors.

use rustix::io::Errno;
use std::io;
use std::time::{Duration, Instant};

/// For how long a failing device is not read.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Slower than any read over a working bus, which takes some milliseconds.
const SLOW: Duration = Duration::from_millis(100);

/// Classes whose files are read from a chip. The rest of `/sys` and `/proc` comes from the kernel's memory.
const CLASSES: [&str; 3] = ["/sys/class/hwmon/", "/sys/class/power_supply/", "/sys/class/thermal/"];

/// The devices that failed lately.
#[derive(Debug, Default)]
pub(super) struct DeviceBackoff(Vec<FailingDevice>);

#[derive(Debug)]
struct FailingDevice {
    /// The folder of the device.
    device: String,
    /// `None` after one slow read, which on a busy machine may have been a wait for the processor.
    until: Option<Instant>,
}

impl DeviceBackoff {
    /// Whether this file must not be read now.
    pub fn is_blocked(&self, path: &str, now: Instant) -> bool {
        let Some(device) = device(path) else { return false };
        let failing = self.0.iter().find(|failing| failing.device == device);
        failing.and_then(|failing| failing.until).is_some_and(|until| now < until)
    }

    /// Records the outcome of a read of this file that began at `now`.
    pub fn record(&mut self, path: &str, error: Option<&io::Error>, took: Duration, now: Instant) {
        let Some(device) = device(path) else { return };
        let known = self.0.iter().position(|failing| failing.device == device);
        let before = known.map(|at| self.0.swap_remove(at));
        let is_dead = error.is_some_and(is_bus_error);
        if is_dead || took > SLOW {
            let until = (is_dead || before.is_some()).then(|| now + RETRY_AFTER);
            self.0.push(FailingDevice { device: device.into(), until });
        }
    }
}

/// Errors that drivers return when a chip does not answer on the bus; other errors mean that it has no value.
fn is_bus_error(error: &io::Error) -> bool {
    [Errno::IO, Errno::TIMEDOUT, Errno::REMOTEIO]
        .iter()
        .any(|dead| error.raw_os_error() == Some(dead.raw_os_error()))
}

/// The folder of the device, if the file is read from a chip.
fn device(path: &str) -> Option<&str> {
    let class = CLASSES.iter().find(|class| path.starts_with(**class))?;
    let end = path[class.len()..].find('/')?;
    Some(&path[..class.len() + end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const POWER: &str = "/sys/class/hwmon/hwmon3/power1_input";
    const QUICK: Duration = Duration::from_millis(2);
    const LONG: Duration = Duration::from_secs(1);

    #[test]
    fn a_device_whose_bus_fails_is_left_alone_for_a_minute_with_all_its_files() {
        for errno in [Errno::IO, Errno::TIMEDOUT, Errno::REMOTEIO] {
            let (mut rests, now) = (DeviceBackoff::default(), Instant::now());
            rests.record(POWER, Some(&errno.into()), QUICK, now);
            let last = now + RETRY_AFTER - Duration::from_millis(1);
            assert!(
                rests.is_blocked(POWER, now) && rests.is_blocked("/sys/class/hwmon/hwmon3/in1_input", last)
            );
            assert!(!rests.is_blocked("/sys/class/hwmon/hwmon33/power1_input", now), "another chip");
            assert!(!rests.is_blocked(POWER, now + RETRY_AFTER));
            rests.record(POWER, None, QUICK, now + RETRY_AFTER);
            assert!(!rests.is_blocked(POWER, now + RETRY_AFTER) && rests.0.is_empty());
        }
    }

    #[test]
    fn one_slow_answer_may_be_a_busy_machine_and_two_in_a_row_are_not() {
        let (mut rests, now) = (DeviceBackoff::default(), Instant::now());
        for took in [LONG, QUICK, LONG] {
            rests.record(POWER, None, took, now);
            assert!(!rests.is_blocked(POWER, now));
        }
        rests.record(POWER, None, LONG, now);
        assert!(rests.is_blocked(POWER, now));
        // Asked again it is as slow as before.
        rests.record(POWER, None, LONG, now + RETRY_AFTER);
        assert!(rests.is_blocked(POWER, now + RETRY_AFTER));
    }

    #[test]
    fn what_has_nothing_to_say_and_what_is_no_chip_is_read_each_time() {
        let (mut rests, now) = (DeviceBackoff::default(), Instant::now());
        for errno in [Errno::NODATA, Errno::NOENT, Errno::ACCESS, Errno::AGAIN] {
            rests.record(POWER, Some(&errno.into()), QUICK, now);
        }
        for path in ["/proc/stat", "/sys/class/powercap/intel-rapl:0/energy_uj", "/sys/class/hwmon/hwmon3"] {
            rests.record(path, Some(&Errno::IO.into()), LONG, now);
            assert!(!rests.is_blocked(path, now));
        }
        assert!(!rests.is_blocked(POWER, now) && rests.0.is_empty());
    }
}
