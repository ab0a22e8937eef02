//! A number of slots that the calls share. Each client has at most half of them, so that one client's many or slow calls
//! do not keep another's out.
//!
//! Deliberately does not know what a slot stands for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots.
#[derive(Debug)]
pub(super) struct Slots {
    all: Arc<Share>,
    of_client: usize,
    clients: Mutex<HashMap<String, Weak<Share>>>,
}

/// The slots of all clients together, or those that one of them may have.
#[derive(Debug)]
struct Share {
    free: Arc<Semaphore>,
    /// How many calls wait for slots.
    waiting: AtomicUsize,
}

/// Slots that are taken; they are free again when this is dropped.
#[derive(Debug)]
pub(super) struct TakenSlots {
    of_all: TakenOf,
    of_client: TakenOf,
}

#[derive(Debug)]
struct TakenOf {
    share: Arc<Share>,
    _permit: OwnedSemaphorePermit,
}

/// A call that waits, until this is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Slots {
    /// So many slots.
    pub fn new(count: usize) -> Self {
        let clients = Mutex::new(HashMap::new());
        Slots { all: Arc::new(Share::new(count)), of_client: count.div_ceil(2), clients }
    }

    /// Waits for so many slots, at most half of all.
    pub async fn take(&self, client: &str, count: usize) -> TakenSlots {
        let count = count.min(self.of_client) as u32;
        let of_client = self.of(client).take(count).await;
        TakenSlots { of_all: Arc::clone(&self.all).take(count).await, of_client }
    }

    fn of(&self, client: &str) -> Arc<Share> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = clients.get(client).and_then(Weak::upgrade) {
            return own;
        }
        clients.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Share::new(self.of_client));
        clients.insert(client.to_owned(), Arc::downgrade(&own));
        own
    }
}

impl TakenSlots {
    /// Whether another call waits that could have these slots.
    pub fn are_wanted(&self) -> bool {
        self.of_client.share.is_waited_for() || self.of_all.share.is_waited_for()
    }
}

impl Share {
    fn new(count: usize) -> Self {
        Share { free: Arc::new(Semaphore::new(count)), waiting: AtomicUsize::new(0) }
    }

    async fn take(self: Arc<Self>, count: u32) -> TakenOf {
        let permit = {
            let _waiting = Waiting::begin(&self.waiting);
            Arc::clone(&self.free).acquire_many_owned(count).await.expect("it is never closed")
        };
        TakenOf { share: self, _permit: permit }
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn one_client_leaves_half_of_the_slots_to_others() {
        let slots = Slots::new(4);
        let soon = |client: &'static str| timeout(Duration::from_secs(1), slots.take(client, 1));
        let (first, second) = (soon("a").await.expect("free"), soon("a").await.expect("free"));
        assert!(soon("a").await.is_err());
        let others = (soon("b").await.expect("free"), soon("c").await.expect("free"));
        assert!(soon("d").await.is_err(), "all are taken");
        drop(first);
        let again = soon("d").await.expect("one is free again");
        drop((second, others, again));
        assert_eq!(slots.all.free.available_permits(), 4);
        slots.of("e");
        assert_eq!(slots.clients.lock().expect("sound").len(), 1, "clients without a call are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn slots_are_wanted_by_those_who_wait_for_them() {
        let slots = Slots::new(4);
        let (of_a, of_b) = (slots.take("a", 2).await, slots.take("b", 1).await);
        assert!(!of_a.are_wanted() && !of_b.are_wanted());
        let mut again = Box::pin(slots.take("a", 1));
        assert!(timeout(Duration::from_secs(1), again.as_mut()).await.is_err());
        assert!(of_a.are_wanted() && !of_b.are_wanted(), "the client waits for its own share");
        drop(again);
        assert!(!of_a.are_wanted(), "it has left");
        let mut others = Box::pin(slots.take("c", 2));
        assert!(timeout(Duration::from_secs(1), others.as_mut()).await.is_err());
        assert!(of_a.are_wanted() && of_b.are_wanted(), "there are not enough for all");
        drop(of_b);
        let others = others.await;
        assert!(!of_a.are_wanted() && !others.are_wanted());
    }
}
