//! Counts consecutive failures that one particular message, packet or request may have caused.
//!
//! A broker that rejects a publish or a subscription may close the connection without naming the cause (MQTT 5,
//! section 4.13, makes the reason optional). After a few such disconnects the suspect is treated differently: sent
//! alone, replaced by an error, or no longer sent. Deliberately knows neither the suspects nor what follows.

/// Disconnects after which an outgoing message is sent with no other beside it, so that the next disconnect names the
/// culprit.
pub const ISOLATE: u32 = 2;
/// Disconnects after which an outgoing message is not sent again: three of them happened while it was sent alone.
pub const GIVE_UP: u32 = 5;
/// Disconnects after which a request that the daemon can do without, such as a subscription, is no longer sent. The
/// first may be a coincidence.
pub const STOP_ASKING: u32 = 2;

/// A count of consecutive failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strikes(u32);

impl Strikes {
    /// Adds a failure if the suspect may have caused it.
    pub fn add_if(&mut self, is_suspect: bool) {
        self.0 = self.0.saturating_add(u32::from(is_suspect));
    }

    /// Whether there are at least `limit` failures.
    pub fn has_reached(self, limit: u32) -> bool {
        self.0 >= limit
    }

    /// Forgets all failures: the suspect is cleared.
    pub fn clear(&mut self) {
        self.0 = 0;
    }

    /// Sets the count so that one more failure reaches `limit`.
    pub fn set_to_last_chance(&mut self, limit: u32) {
        self.0 = limit.saturating_sub(1);
    }
}
