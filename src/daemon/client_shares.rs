//! How many of the socket's places in the queue each client may hold. Decisions only.
//!
//! Deliberately knows no request: it counts places per client.

use std::collections::HashMap;

/// The places that clients of the socket hold.
#[derive(Debug)]
pub(super) struct ClientShares {
    depth: usize,
    percent: usize,
    by_client: HashMap<String, ClientUse>,
    total: ClientUse,
}

/// Places held, by one client or by all together, and bytes of their request texts. A client that holds no place has
/// no entry.
#[derive(Debug, Clone, Copy, Default)]
struct ClientUse {
    places: usize,
    texts: usize,
}

/// The place of one more request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot<'a> {
    /// A free place.
    Free,
    /// The place of a request of this other client, which holds more than its share.
    TakenFrom(&'a str),
    /// No place: its client holds its share already, or all places where it is alone.
    None,
}

impl ClientShares {
    pub fn new(depth: usize, percent: usize) -> Self {
        ClientShares { depth, percent, by_client: HashMap::new(), total: ClientUse::default() }
    }

    /// Sets the share of a client while others wait, in percent.
    pub fn set_percent(&mut self, percent: usize) {
        self.percent = percent;
    }

    /// The most places that one of `clients` may hold; with many clients the places are divided equally.
    fn share(&self, clients: usize) -> usize {
        if clients <= 1 {
            return self.depth;
        }
        (self.depth * self.percent / 100).min(self.depth / clients).max(1)
    }

    /// Finds a place for one more request of `client`; there is an additional place while the worker `is_idle`.
    ///
    /// A client within its share always finds one: where all places are taken, some other client holds more than
    /// its share, unless there are more clients than places. Then the first request of each client waits besides
    /// the others; there are no more of these than connections.
    pub fn find_slot(&self, client: &str, is_idle: bool) -> Slot<'_> {
        let own = self.by_client.get(client).map_or(0, |held| held.places);
        let clients = self.by_client.len() + usize::from(own == 0);
        let share = self.share(clients);
        let more = usize::from(is_idle);
        if own >= share + if clients == 1 { more } else { 0 } {
            return Slot::None;
        }
        if self.total.places < self.depth + more {
            return Slot::Free;
        }
        let most =
            self.by_client.iter().filter(|(name, _)| *name != client).max_by_key(|(_, held)| held.places);
        match most {
            Some((name, held)) if held.places > share => Slot::TakenFrom(name),
            _ => Slot::Free,
        }
    }

    /// Whether the texts of all requests with this one fit in `most` bytes, and whether those of its client fit in
    /// the client's share of them.
    pub fn texts_fit(&self, client: &str, texts: usize, most: usize) -> (bool, bool) {
        let own = self.by_client.get(client).map_or(0, |held| held.texts);
        (self.total.texts + texts <= most, own == 0 || own + texts <= most * self.percent / 100)
    }

    /// Adds a waiting request of `client`.
    pub fn add(&mut self, client: &str, texts: usize) {
        if !self.by_client.contains_key(client) {
            self.by_client.insert(client.to_owned(), ClientUse::default());
        }
        let own = self.by_client.get_mut(client).expect("just added where it was missing");
        for held in [own, &mut self.total] {
            *held = ClientUse { places: held.places + 1, texts: held.texts + texts };
        }
    }

    /// Removes a request of `client` that no longer waits.
    pub fn remove(&mut self, client: &str, texts: usize) {
        let Some(own) = self.by_client.get_mut(client) else { return };
        for held in [&mut *own, &mut self.total] {
            *held = ClientUse { places: held.places - 1, texts: held.texts - texts };
        }
        if own.places == 0 {
            self.by_client.remove(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(depth: usize, held: &[(&str, usize)]) -> ClientShares {
        let mut shares = ClientShares::new(depth, 50);
        for (client, count) in held {
            (0..*count).for_each(|_| shares.add(client, 1));
        }
        shares
    }

    #[test]
    fn a_client_that_is_alone_may_hold_every_place_and_no_more() {
        assert_eq!(shares(4, &[("a", 3)]).find_slot("a", false), Slot::Free);
        assert_eq!(shares(4, &[("a", 4)]).find_slot("a", false), Slot::None);
        assert_eq!(shares(4, &[("a", 4)]).find_slot("a", true), Slot::Free);
    }

    #[test]
    fn where_another_waits_half_of_the_places_are_the_most() {
        assert_eq!(shares(8, &[("a", 3), ("b", 1)]).find_slot("a", false), Slot::Free);
        assert_eq!(shares(8, &[("a", 4), ("b", 1)]).find_slot("a", false), Slot::None);
    }

    #[test]
    fn a_client_within_its_share_takes_the_place_of_one_beyond_its_own() {
        assert_eq!(shares(8, &[("a", 8)]).find_slot("b", false), Slot::TakenFrom("a"));
        assert_eq!(shares(8, &[("a", 7), ("b", 1)]).find_slot("b", false), Slot::TakenFrom("a"));
        assert_eq!(shares(8, &[("a", 4), ("b", 4)]).find_slot("b", false), Slot::None);
        // Where two clients hold the same number, either may be chosen.
        let even = shares(8, &[("a", 4), ("b", 4)]);
        assert!(matches!(even.find_slot("c", false), Slot::TakenFrom("a" | "b")));
    }

    #[test]
    fn the_first_request_of_a_client_always_has_a_place() {
        let mut shares = shares(2, &[("a", 2)]);
        assert_eq!(shares.find_slot("b", false), Slot::TakenFrom("a"));
        shares.remove("a", 1);
        shares.add("b", 1);
        for client in ["c", "d", "e"] {
            assert_eq!(shares.find_slot(client, false), Slot::Free, "{client}");
            shares.add(client, 1);
            assert_eq!(shares.find_slot(client, false), Slot::None, "{client}");
        }
    }

    #[test]
    fn one_client_s_texts_leave_half_of_the_bytes_to_the_others() {
        let mut shares = shares(9, &[("a", 4)]);
        assert_eq!(shares.texts_fit("a", 1, 10), (true, true));
        assert_eq!(shares.texts_fit("a", 2, 10), (true, false));
        assert_eq!(shares.texts_fit("b", 6, 10), (true, true));
        assert_eq!(shares.texts_fit("b", 7, 10), (false, true));
        shares.remove("a", 1);
        assert_eq!(shares.texts_fit("a", 2, 10), (true, true));
    }

    #[test]
    fn whoever_is_within_its_share_finds_a_place_whatever_the_others_hold() {
        for depth in 1..12 {
            for a in 0..=depth {
                for b in 0..=depth - a {
                    let shares = shares(depth, &[("a", a), ("b", b), ("c", depth - a - b)]);
                    let share = shares.share(3.min(shares.by_client.len()));
                    for (client, held) in [("a", a), ("b", b)] {
                        let place = shares.find_slot(client, false);
                        assert!(
                            held == 0 || held >= share || place != Slot::None,
                            "{depth} {a} {b}: {place:?}"
                        );
                    }
                    assert_ne!(shares.find_slot("new", false), Slot::None, "{depth} {a} {b}");
                }
            }
        }
    }
}
