//! The connections of one listener, and which of them is closed for another client.
//!
//! Deliberately knows nothing of what the connections carry.

use super::in_flight::InFlight;
use rustix::io::ioctl_fionread;
use std::os::fd::AsFd;
use std::sync::Weak;
use std::time::Instant;

/// The connections that count against a listener's limit; `S` is the type of their sockets.
#[derive(Debug)]
pub struct OpenConnections<S>(Vec<OpenConnection<S>>);

/// A connection as long as its task runs.
#[derive(Debug)]
struct OpenConnection<S> {
    in_flight: Weak<InFlight>,
    /// A handle of its socket.
    socket: Weak<S>,
}

impl<S> Default for OpenConnections<S> {
    fn default() -> Self {
        OpenConnections(Vec::new())
    }
}

impl<S: AsFd> OpenConnection<S> {
    /// Whether the client has sent something that its task has not read yet. Right after the accept that is usually
    /// so: a client connects and asks before the task runs.
    fn has_unread_bytes(&self) -> bool {
        // Where the kernel cannot tell, the connection is not taken for idle.
        self.socket.upgrade().is_some_and(|socket| ioctl_fionread(&*socket).map_or(true, |count| count > 0))
    }
}

impl<S: AsFd> OpenConnections<S> {
    /// Counts a connection, which ends when both are dropped.
    pub fn add(&mut self, in_flight: Weak<InFlight>, socket: Weak<S>) {
        self.0.push(OpenConnection { in_flight, socket });
    }

    /// How many there are. Those that have ended are removed.
    pub fn count(&mut self) -> usize {
        self.0.retain(|open| open.in_flight.upgrade().is_some_and(|in_flight| in_flight.is_open()));
        self.0.len()
    }

    /// Returns whether one more is allowed, if need be after evicting the
    /// connection that has been idle longest.
    pub fn make_slot(&mut self, most: usize) -> bool {
        if self.count() < most {
            return true;
        }
        let now = Instant::now();
        let mut idle: Vec<_> = self
            .0
            .iter()
            .filter_map(|open| {
                let in_flight = open.in_flight.upgrade()?;
                Some((in_flight.idle_since(now)?, in_flight, open))
            })
            .collect();
        idle.sort_by_key(|(since, ..)| *since);
        idle.iter().any(|(_, in_flight, open)| !open.has_unread_bytes() && in_flight.evict(now))
    }
}
