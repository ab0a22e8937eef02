//! What concerns the security of the daemon: counted, and written as the security record, a line of JSON for each event.
//!
//! A refusal of the guard, a command from somebody else than the owner of a request, a token that is none, and a reload are
//! events. Whoever repeats one does not fill the journal: some lines a minute are written, and the number of the others.
//! Deliberately knows no guard and no transport, and never sees the text of a prompt.

mod counts;
mod event;
mod repeat_limit;
#[cfg(test)]
mod tests;

pub use event::{ReloadOutcome, RemoteCommand, SecurityEvent, SecurityEventKind, TokenFailure};

use super::{locked, log, rfc3339};
use crate::protocol::Security;
use crate::protocol::text::escaped_json;
use counts::Counts;
use event::SecurityLine;
use repeat_limit::RepeatLimit;
use std::fmt;
use std::sync::{Mutex, OnceLock};
use std::time::{Instant, SystemTime};

/// The counts since start, and the record.
#[derive(Debug, Default)]
pub struct SecurityRecord {
    counts: Mutex<Counts>,
    repeated: Mutex<RepeatLimit>,
    names: OnceLock<ClientNames>,
}

/// How a client is shown, from the key by which limits know it.
struct ClientNames(Box<dyn Fn(&str) -> String + Send + Sync>);

impl fmt::Debug for ClientNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientNames").finish_non_exhaustive()
    }
}

impl SecurityRecord {
    /// Sets how clients are shown that did not come as far as the guard, which names all others; a second call has no effect.
    pub fn name_clients(&self, shown: impl Fn(&str) -> String + Send + Sync + 'static) {
        let _ = self.names.set(ClientNames(Box::new(shown)));
    }

    /// How a client is shown; `None` before [`name_clients`](Self::name_clients).
    pub fn client_name(&self, client: &str) -> Option<String> {
        self.names.get().map(|names| names.0(client))
    }

    /// Counts an event, and writes it unless too many like it came in the last minute. Never waits.
    pub fn record(&self, event: &SecurityEvent<'_>) {
        locked(&self.counts).add(event);
        if locked(&self.repeated).admit(event, Instant::now()) {
            write(&event.line(rfc3339(SystemTime::now())));
        }
    }

    /// Writes how many events were left out, for those whose minute is over. To be called about once a second.
    pub fn summarize(&self, now: Instant) {
        let ended = locked(&self.repeated).take_ended(now);
        ended.iter().for_each(|left_out| write(&left_out.line(rfc3339(SystemTime::now()))));
    }

    /// Writes how many events were left out until now, at the end of the daemon.
    pub fn finish(&self) {
        let left = locked(&self.repeated).take_all();
        left.iter().for_each(|left_out| write(&left_out.line(rfc3339(SystemTime::now()))));
    }

    /// The counts now.
    pub fn counts(&self) -> Security {
        locked(&self.counts).report()
    }
}

fn write(line: &SecurityLine<'_>) {
    let json = serde_json::to_string(line).expect("a line is plain data");
    log::write_security(&escaped_json(&json));
}
