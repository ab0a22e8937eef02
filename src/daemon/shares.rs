//! How many of the socket's places in the queue each client may hold: decisions only.
//!
//! Deliberately knows no request: it counts by whose turn each takes.

use std::collections::HashMap;

/// The places that requests of the socket hold.
#[derive(Debug)]
pub(super) struct Shares {
    depth: usize,
    percent: usize,
    held: HashMap<String, Held>,
    total: Held,
}

/// Places, never 0 for a client, and bytes of the texts in them.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    places: usize,
    texts: usize,
}

/// What becomes of one more request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// It waits.
    Free,
    /// It waits in the place of one of this client's, which holds more than its share.
    Of(&'a str),
    /// Its client has its share already, or all places where it is alone.
    None,
}

impl Shares {
    pub fn new(depth: usize, percent: usize) -> Self {
        Shares { depth, percent, held: HashMap::new(), total: Held::default() }
    }

    /// The share of a client where others wait, in percent, from now on.
    pub fn set_percent(&mut self, percent: usize) {
        self.percent = percent;
    }

    /// Most places that one of so many clients may hold: where they are many, all the same.
    fn share(&self, clients: usize) -> usize {
        if clients <= 1 {
            return self.depth;
        }
        (self.depth * self.percent / 100).min(self.depth / clients).max(1)
    }

    /// Finds a place for one more request of `client`; there is one more than usual where the worker `is_idle`.
    ///
    /// A client within its share always has one: where all are taken, some other holds more than its share, unless
    /// there are more clients than places. The first request of each waits then beside the others; there are no more
    /// of these than connections.
    pub fn place(&self, client: &str, is_idle: bool) -> Place<'_> {
        let own = self.held.get(client).map_or(0, |held| held.places);
        let clients = self.held.len() + usize::from(own == 0);
        let share = self.share(clients);
        let more = usize::from(is_idle);
        if own >= share + if clients == 1 { more } else { 0 } {
            return Place::None;
        }
        if self.total.places < self.depth + more {
            return Place::Free;
        }
        let most = self.held.iter().filter(|(name, _)| *name != client).max_by_key(|(_, held)| held.places);
        match most {
            Some((name, held)) if held.places > share => Place::Of(name),
            _ => Place::Free,
        }
    }

    /// Whether `most` bytes are enough for the texts of all with this one more, and its client's share of them for its
    /// own.
    pub fn texts_fit(&self, client: &str, texts: usize, most: usize) -> (bool, bool) {
        let own = self.held.get(client).map_or(0, |held| held.texts);
        (self.total.texts + texts <= most, own == 0 || own + texts <= most * self.percent / 100)
    }

    /// Notes that a request of `client` waits.
    pub fn add(&mut self, client: &str, texts: usize) {
        if !self.held.contains_key(client) {
            self.held.insert(client.to_owned(), Held::default());
        }
        let own = self.held.get_mut(client).expect("just added where it was missing");
        for held in [own, &mut self.total] {
            *held = Held { places: held.places + 1, texts: held.texts + texts };
        }
    }

    /// Notes that one waits no more.
    pub fn remove(&mut self, client: &str, texts: usize) {
        let Some(own) = self.held.get_mut(client) else { return };
        for held in [&mut *own, &mut self.total] {
            *held = Held { places: held.places - 1, texts: held.texts - texts };
        }
        if own.places == 0 {
            self.held.remove(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(depth: usize, held: &[(&str, usize)]) -> Shares {
        let mut shares = Shares::new(depth, 50);
        for (client, count) in held {
            (0..*count).for_each(|_| shares.add(client, 1));
        }
        shares
    }

    #[test]
    fn a_client_that_is_alone_may_hold_every_place_and_no_more() {
        assert_eq!(shares(4, &[("a", 3)]).place("a", false), Place::Free);
        assert_eq!(shares(4, &[("a", 4)]).place("a", false), Place::None);
        assert_eq!(shares(4, &[("a", 4)]).place("a", true), Place::Free);
    }

    #[test]
    fn where_another_waits_half_of_the_places_are_the_most() {
        assert_eq!(shares(8, &[("a", 3), ("b", 1)]).place("a", false), Place::Free);
        assert_eq!(shares(8, &[("a", 4), ("b", 1)]).place("a", false), Place::None);
    }

    #[test]
    fn a_client_within_its_share_takes_the_place_of_one_beyond_its_own() {
        assert_eq!(shares(8, &[("a", 8)]).place("b", false), Place::Of("a"));
        assert_eq!(shares(8, &[("a", 7), ("b", 1)]).place("b", false), Place::Of("a"));
        assert_eq!(shares(8, &[("a", 4), ("b", 4)]).place("b", false), Place::None);
        // Which of two that hold as many does not matter.
        let even = shares(8, &[("a", 4), ("b", 4)]);
        assert!(matches!(even.place("c", false), Place::Of("a" | "b")));
    }

    #[test]
    fn the_first_request_of_a_client_always_has_a_place() {
        let mut shares = shares(2, &[("a", 2)]);
        assert_eq!(shares.place("b", false), Place::Of("a"));
        shares.remove("a", 1);
        shares.add("b", 1);
        for client in ["c", "d", "e"] {
            assert_eq!(shares.place(client, false), Place::Free, "{client}");
            shares.add(client, 1);
            assert_eq!(shares.place(client, false), Place::None, "{client}");
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
                    let share = shares.share(3.min(shares.held.len()));
                    for (client, held) in [("a", a), ("b", b)] {
                        let place = shares.place(client, false);
                        assert!(
                            held == 0 || held >= share || place != Place::None,
                            "{depth} {a} {b}: {place:?}"
                        );
                    }
                    assert_ne!(shares.place("new", false), Place::None, "{depth} {a} {b}");
                }
            }
        }
    }
}
