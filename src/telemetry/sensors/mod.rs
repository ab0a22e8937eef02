//! What the host says of itself: power, temperature, throttling, load and memory, read from `/sys` and `/proc` under a
//! given root, so that recorded boards test it, and on a Raspberry Pi from its firmware.
//!
//! A file that is missing, unreadable or malformed is `None`, never a panic and never a made-up
//! number. Deliberately knows nothing of the daemon, of thresholds, or of what the numbers are for.

mod cached;
mod cgroup;
mod cpu;
mod cpu_topology;
mod cpufreq;
mod device_backoff;
mod inventory;
mod memory;
mod power;
mod psi;
mod rolling_mean;
mod rpi_firmware;
mod sysfs;
mod thermal;
mod throttle;

pub use cpu_topology::{Processors, processors};
pub use inventory::{Found, Unbelieved};
pub use memory::{MemoryLimit, host_memory, memory_limit, peak_memory, resident_memory};
pub use rpi_firmware::{rails_watts, throttle_flags};

use crate::config::BoardWatts;
use crate::protocol::{Cpu, Memory, Reading, Thermal};
use rpi_firmware::Access;
use std::path::Path;
use std::time::Instant;
use sysfs::Root;

/// The host at one moment; what this machine cannot tell is `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Power, in watts.
    pub power: Option<Reading>,
    /// Temperature, in degrees Celsius, and what is done against it.
    pub thermal: Thermal,
    /// Load of host and process, and the clock.
    pub cpu: Cpu,
    /// Memory of host, control group and process; the budget is 0 here, the daemon knows it.
    pub memory: Memory,
}

/// The sensors of this machine. Which there are is looked up once: their numbers change between
/// boots, not between readings.
#[derive(Debug)]
pub struct Sensors {
    root: Root,
    mailbox: Access,
    power: power::Power,
    thermal: thermal::Thermometers,
    fans: thermal::Fans,
    supply: throttle::Supply,
    load: cpu::Load,
    clocks: cpufreq::Clocks,
    memory: memory::Memories,
}

impl Sensors {
    /// Looks for sensors under `root`, which is `/` but in tests. Only the running machine has a firmware to ask.
    pub fn new(root: &Path) -> Self {
        let root = Root::new(root);
        let mailbox = if root.is_live() { rpi_firmware::open() } else { Access::Absent };
        Sensors::with(root, mailbox)
    }

    fn with(root: Root, mailbox: Access) -> Self {
        Sensors {
            mailbox,
            power: power::Power::find(&root),
            thermal: thermal::Thermometers::find(&root),
            fans: thermal::Fans::find(&root),
            supply: throttle::Supply::find(&root),
            load: cpu::Load::new(Instant::now()),
            clocks: cpufreq::Clocks::find(&root),
            memory: memory::Memories::find(&root),
            root,
        }
    }

    /// Where nothing measures the power, estimates it from the load between these figures of the owner's.
    #[must_use]
    pub fn estimating(mut self, watts: Option<BoardWatts>) -> Self {
        self.power.estimate(watts);
        self
    }

    /// Reads everything. Power derived from energy is a mean since the reading before, loads are means over the last
    /// ten seconds, so the first reading has none of them.
    pub fn read(&mut self, now: Instant) -> Snapshot {
        Snapshot {
            power: self.power(now),
            thermal: self.thermal(now),
            cpu: Cpu {
                frequency: self.clocks.read(&self.root),
                frequency_max_mhz: self.clocks.most_mhz(),
                ..self.load.read(&self.root, now)
            },
            memory: self.memory.read(&self.root, now),
        }
    }

    /// Reads power alone: a few small files or one call to the firmware, cheap enough to do around each request.
    pub fn power(&mut self, now: Instant) -> Option<Reading> {
        self.root.look(now);
        self.power.read(&self.root, self.mailbox.opened(), now)
    }

    fn thermal(&mut self, now: Instant) -> Thermal {
        self.root.look(now);
        let throttling = self.mailbox.opened().and_then(|mailbox| throttle::throttling(mailbox, now));
        Thermal {
            cpu: self.thermal.read(&self.root),
            under_voltage: self.supply.under_voltage(&self.root, throttling.as_ref()),
            throttling,
            fan: self.fans.read(&self.root),
        }
    }
}

#[cfg(test)]
mod tests;
