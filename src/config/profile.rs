//! Profiles: values for several keys that suit a kind of machine.
//!
//! Deliberately knows no defaults: a profile fills keys that the file leaves out.

use super::Host;
use super::key_error::{KeyError, KeyResult};

/// A kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A small board beside other work: quick answers, one at a time.
    Mobile,
    /// A board of its own: quick answers.
    Edge,
    /// A small server: many answers.
    Server,
    /// A large one.
    Cloud,
}

impl Profile {
    /// All profiles, the smallest first.
    pub const ALL: [Profile; 4] = [Profile::Mobile, Profile::Edge, Profile::Server, Profile::Cloud];

    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Mobile => "mobile",
            Profile::Edge => "edge",
            Profile::Server => "server",
            Profile::Cloud => "cloud",
        }
    }

    pub(super) fn checked(name: Option<&str>) -> KeyResult<Option<Self>> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
        let found = Profile::ALL.into_iter().find(|profile| profile.name() == name);
        let reason = || {
            KeyError(
                "",
                "profile",
                format!("{name:?} is none of \"mobile\", \"edge\", \"server\" and \"cloud\""),
            )
        };
        found.ok_or_else(reason).map(Some)
    }

    fn choose<T>(self, values: [T; 4]) -> T {
        let [mobile, edge, server, cloud] = values;
        match self {
            Profile::Mobile => mobile,
            Profile::Edge => edge,
            Profile::Server => server,
            Profile::Cloud => cloud,
        }
    }

    /// `budget.threads`: no more than the machine suggests.
    pub fn threads(self, host: &Host) -> usize {
        self.choose([2, 4, 8, 16]).min(host.threads())
    }

    /// `budget.memory_mb`: no more than three quarters of the machine's memory.
    pub fn memory_mb(self, host: &Host) -> u64 {
        let most = (host.memory_bytes >> 20) / 4 * 3;
        self.choose([512, 1024, 2048, 4096]).min(most.max(8))
    }

    /// `queue.depth`.
    pub fn queue_depth(self) -> usize {
        self.choose([8, 16, 64, 256])
    }

    /// The longest context that is chosen where `model.context` is left out.
    pub fn most_context(self) -> usize {
        self.choose([1024, 2048, 4096, usize::MAX])
    }

    /// The most requests together where `budget.parallel` is left out: few give quick answers, many give more tokens in all.
    pub fn most_parallel(self) -> usize {
        self.choose([1, 2, 4, 4])
    }
}
