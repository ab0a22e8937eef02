//! The sensors of the host: power, temperature, throttling, load and memory. They are read from `/sys` and `/proc`
//! under a given root, so that recorded boards test them, and on a Raspberry Pi from its firmware.
//!
//! A file that is missing, unreadable or malformed is `None`, never a panic and never an invented number.
//! Deliberately knows nothing of the daemon, of thresholds, or of what the numbers are used for.

mod cached;
mod cgroup;
mod cpu;
mod cpu_topology;
mod cpufreq;
mod device_backoff;
mod host_tuning;
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
pub use cpufreq::FrequencyGovernor;
pub use host_tuning::{HostTuning, SwapUse, host_tuning};
pub use inventory::{FoundSensor, RejectedSensor};
pub use memory::{MemoryLimit, host_memory, memory_limit, peak_memory, resident_memory};
pub use rpi_firmware::{rails_watts, throttle_flags};

use crate::config::BoardWatts;
use crate::protocol::{Cpu, Memory, Reading, Thermal};
use rpi_firmware::MailboxAccess;
use std::path::Path;
use std::time::Instant;
use sysfs::Root;

/// The host at one moment; what this machine cannot measure is `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Power, in watts.
    pub power: Option<Reading>,
    /// Temperature in degrees Celsius, throttling and the fan.
    pub thermal: Thermal,
    /// Load of host and process, and the clock frequency.
    pub cpu: Cpu,
    /// Memory of host, control group and process, in bytes; the budget is 0 here and set by the daemon.
    pub memory: Memory,
    /// Whether a battery supplies the machine now.
    pub is_on_battery: bool,
}

/// The sensors of this machine. They are looked up once, since their numbers change only between boots.
#[derive(Debug)]
pub struct Sensors {
    root: Root,
    firmware: MailboxAccess,
    power: power::PowerSensors,
    thermal: thermal::Thermometers,
    fans: thermal::Fans,
    supply_voltage: throttle::SupplyVoltage,
    load: cpu::CpuLoad,
    cpu_frequencies: cpufreq::CpuFrequencies,
    memory: memory::MemorySensors,
}

impl Sensors {
    /// Looks for sensors under `root`, which is `/` except in tests. Only the running machine has a firmware to
    /// query.
    pub fn new(root: &Path) -> Self {
        let root = Root::new(root);
        let mailbox = if root.is_live() { rpi_firmware::open() } else { MailboxAccess::Absent };
        Sensors::with(root, mailbox)
    }

    fn with(root: Root, mailbox: MailboxAccess) -> Self {
        Sensors {
            firmware: mailbox,
            power: power::PowerSensors::find(&root),
            thermal: thermal::Thermometers::find_by_name(&root),
            fans: thermal::Fans::find(&root),
            supply_voltage: throttle::SupplyVoltage::find(&root),
            load: cpu::CpuLoad::new(Instant::now()),
            cpu_frequencies: cpufreq::CpuFrequencies::find(&root),
            memory: memory::MemorySensors::find(&root),
            root,
        }
    }

    /// Estimates power from the load, between these two values of the owner, where nothing measures it.
    #[must_use]
    pub fn estimating(mut self, watts: Option<BoardWatts>) -> Self {
        self.power.estimate(watts);
        self
    }

    /// Reads all sensors. Power that is derived from energy is a mean since the last reading, and loads are means
    /// over the last ten seconds, so the first reading has neither.
    pub fn read(&mut self, now: Instant) -> Snapshot {
        Snapshot {
            power: self.power(now),
            thermal: self.thermal(now),
            cpu: Cpu {
                frequency: self.cpu_frequencies.read(&self.root),
                frequency_max_mhz: self.cpu_frequencies.max_mhz(),
                ..self.load.read(&self.root, now)
            },
            memory: self.memory.read(&self.root, now),
            is_on_battery: self.power.is_on_battery(&self.root),
        }
    }

    /// Reads power alone: a few small files or one call to the firmware, cheap enough to be done before and after
    /// each request.
    pub fn power(&mut self, now: Instant) -> Option<Reading> {
        self.root.begin_reading(now);
        self.power.read(&self.root, self.firmware.opened(), now)
    }

    fn thermal(&mut self, now: Instant) -> Thermal {
        self.root.begin_reading(now);
        let throttling = self.firmware.opened().and_then(|mailbox| throttle::throttling(mailbox, now));
        Thermal {
            cpu: self.thermal.read(&self.root),
            under_voltage: self.supply_voltage.under_voltage(&self.root, throttling.as_ref()),
            throttling,
            fan: self.fans.read(&self.root),
        }
    }
}

#[cfg(test)]
mod tests;
