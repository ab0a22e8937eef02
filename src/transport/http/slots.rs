//! A number of slots that the calls share. Each client has at most half of them, so that one client's many or slow calls
//! do not keep another's out.
//!
//! Deliberately does not know what a slot stands for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots.
#[derive(Debug)]
pub(super) struct Slots {
    all: Arc<Semaphore>,
    of_client: usize,
    clients: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Slots that are taken; they are free again when this is dropped.
#[derive(Debug)]
pub(super) struct TakenSlots {
    _of_all: OwnedSemaphorePermit,
    // Dropped last: the client's semaphore lives as long as one of its calls.
    _of_client: OwnedSemaphorePermit,
}

impl Slots {
    /// So many slots.
    pub fn new(count: usize) -> Self {
        let clients = Mutex::new(HashMap::new());
        Slots { all: Arc::new(Semaphore::new(count)), of_client: count.div_ceil(2), clients }
    }

    /// Waits for so many slots, at most half of all.
    pub async fn take(&self, client: &str, count: usize) -> TakenSlots {
        let count = count.min(self.of_client) as u32;
        let own = self.of(client);
        let of_client = own.acquire_many_owned(count).await.expect("it is never closed");
        let of_all = Arc::clone(&self.all).acquire_many_owned(count).await.expect("it is never closed");
        TakenSlots { _of_all: of_all, _of_client: of_client }
    }

    fn of(&self, client: &str) -> Arc<Semaphore> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = clients.get(client).and_then(Weak::upgrade) {
            return own;
        }
        clients.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(self.of_client));
        clients.insert(client.to_owned(), Arc::downgrade(&own));
        own
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
        assert_eq!(slots.all.available_permits(), 4);
        slots.of("e");
        assert_eq!(slots.clients.lock().expect("sound").len(), 1, "clients without a call are forgotten");
    }
}
