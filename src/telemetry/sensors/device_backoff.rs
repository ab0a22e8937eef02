//! Devices that are left alone for a while: with the clock line of an I2C bus held low each reading of a chip behind it
//! waits for the adapter's timeout, a second or so, and the thread that reads is the one that answers clients.

use rustix::io::Errno;
use std::io;
use std::time::{Duration, Instant};

/// For how long.
const REST: Duration = Duration::from_secs(60);

/// A reading over a sound bus takes some milliseconds.
const SLOW: Duration = Duration::from_millis(100);

/// Where a file is a question to a chip. The rest of `/sys` and `/proc` is the kernel's own memory.
const CLASSES: [&str; 3] = ["/sys/class/hwmon/", "/sys/class/power_supply/", "/sys/class/thermal/"];

/// The devices in trouble.
#[derive(Debug, Default)]
pub(super) struct Rests(Vec<Trouble>);

#[derive(Debug)]
struct Trouble {
    /// The folder of the device.
    device: String,
    /// `None` after one slow answer: on a busy machine that may have been the wait for a processor.
    until: Option<Instant>,
}

impl Rests {
    /// Whether this file is not to be read now.
    pub fn has(&self, path: &str, now: Instant) -> bool {
        let Some(device) = device(path) else { return false };
        let trouble = self.0.iter().find(|trouble| trouble.device == device);
        trouble.and_then(|trouble| trouble.until).is_some_and(|until| now < until)
    }

    /// Takes note of how a reading of this file, begun at `now`, went.
    pub fn note(&mut self, path: &str, error: Option<&io::Error>, took: Duration, now: Instant) {
        let Some(device) = device(path) else { return };
        let known = self.0.iter().position(|trouble| trouble.device == device);
        let before = known.map(|at| self.0.swap_remove(at));
        let is_dead = error.is_some_and(is_dead);
        if is_dead || took > SLOW {
            let until = (is_dead || before.is_some()).then(|| now + REST);
            self.0.push(Trouble { device: device.into(), until });
        }
    }
}

/// What drivers say of a chip that does not answer. Others tell of one that has nothing to say.
fn is_dead(error: &io::Error) -> bool {
    [Errno::IO, Errno::TIMEDOUT, Errno::REMOTEIO]
        .iter()
        .any(|dead| error.raw_os_error() == Some(dead.raw_os_error()))
}

/// The folder of the device, if the file is one of a chip's.
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
            let (mut rests, now) = (Rests::default(), Instant::now());
            rests.note(POWER, Some(&errno.into()), QUICK, now);
            let last = now + REST - Duration::from_millis(1);
            assert!(rests.has(POWER, now) && rests.has("/sys/class/hwmon/hwmon3/in1_input", last));
            assert!(!rests.has("/sys/class/hwmon/hwmon33/power1_input", now), "another chip");
            assert!(!rests.has(POWER, now + REST));
            rests.note(POWER, None, QUICK, now + REST);
            assert!(!rests.has(POWER, now + REST) && rests.0.is_empty());
        }
    }

    #[test]
    fn one_slow_answer_may_be_a_busy_machine_and_two_in_a_row_are_not() {
        let (mut rests, now) = (Rests::default(), Instant::now());
        for took in [LONG, QUICK, LONG] {
            rests.note(POWER, None, took, now);
            assert!(!rests.has(POWER, now));
        }
        rests.note(POWER, None, LONG, now);
        assert!(rests.has(POWER, now));
        // Asked again it is as slow as before.
        rests.note(POWER, None, LONG, now + REST);
        assert!(rests.has(POWER, now + REST));
    }

    #[test]
    fn what_has_nothing_to_say_and_what_is_no_chip_is_read_each_time() {
        let (mut rests, now) = (Rests::default(), Instant::now());
        for errno in [Errno::NODATA, Errno::NOENT, Errno::ACCESS, Errno::AGAIN] {
            rests.note(POWER, Some(&errno.into()), QUICK, now);
        }
        for path in ["/proc/stat", "/sys/class/powercap/intel-rapl:0/energy_uj", "/sys/class/hwmon/hwmon3"] {
            rests.note(path, Some(&Errno::IO.into()), LONG, now);
            assert!(!rests.has(path, now));
        }
        assert!(!rests.has(POWER, now) && rests.0.is_empty());
    }
}
