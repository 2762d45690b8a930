//! Promises about the sealed parts of conversations.

use std::time::Duration;

use ringspan::{
    ids::{Epoch, Incarnation},
    store::{NewPart, Part},
};

use crate::ring::{LONG, Ring, id};

fn part(key: &str, epoch: Epoch, no: u32, sealed: &str) -> NewPart {
    let part = Part { epoch, no, sealed: sealed.as_bytes().to_vec() };
    NewPart { session: id(key), part, whole: false }
}

fn whole(key: &str, epoch: Epoch, no: u32, sealed: &str) -> NewPart {
    NewPart { whole: true, ..part(key, epoch, no, sealed) }
}

impl Ring {
    async fn put(&self, parts: &[NewPart]) {
        self.store.put_parts(parts).await.unwrap();
    }

    /// What another node reads of a session's conversation.
    async fn said(&self, key: &str) -> Vec<String> {
        let parts = self.other.parts_of(id(key), 100).await.unwrap();
        parts.into_iter().map(|part| String::from_utf8(part.sealed).unwrap()).collect()
    }

    /// The session moves to another owner, as after a death.
    async fn taken_over(&self, from: Incarnation, by: Incarnation, key: &str) -> Epoch {
        self.kill(from).await;
        let seen = self.row(key).await.epoch;
        self.win(by, key, Some(seen)).await
    }
}

pub async fn parts_are_given_back_in_order_to_every_node(ring: Ring) {
    let (a, b) = (ring.node("a").await, ring.node("b").await);
    let first = ring.win(a, "k", None).await;
    let other = ring.win(a, "other", None).await;
    ring.put(&[part("k", first, 1, "two"), part("other", other, 0, "x")]).await;
    ring.put(&[part("k", first, 0, "one"), part("k", first, 10, "three")]).await;
    let second = ring.taken_over(a, b, "k").await;
    ring.put(&[part("k", second, 0, "four")]).await;
    ring.put(&[]).await;
    assert_eq!(ring.said("k").await, ["one", "two", "three", "four"]);
    assert_eq!(ring.said("other").await, ["x"]);
    assert_eq!(ring.said("nobody").await, Vec::<String>::new());
    let parts = ring.other.parts_of(id("k"), 3).await.unwrap();
    let places: Vec<_> = parts.iter().map(|part| (part.epoch, part.no)).collect();
    assert_eq!(places, [(first, 0), (first, 1), (first, 10)], "at most as many as asked for");
}

pub async fn a_whole_part_takes_the_place_of_all_before_it_and_of_no_later_owners(ring: Ring) {
    let (a, b) = (ring.node("a").await, ring.node("b").await);
    let first = ring.win(a, "k", None).await;
    let other = ring.win(a, "other", None).await;
    ring.put(&[part("k", first, 0, "one"), part("k", first, 1, "two")]).await;
    ring.put(&[part("other", other, 0, "x")]).await;
    ring.put(&[whole("k", first, 2, "one to three")]).await;
    ring.put(&[part("k", first, 3, "four")]).await;
    assert_eq!(ring.said("k").await, ["one to three", "four"]);
    let second = ring.taken_over(a, b, "k").await;
    ring.put(&[part("k", second, 0, "five")]).await;
    ring.put(&[whole("k", first, 4, "late")]).await;
    assert_eq!(ring.said("k").await, ["late", "five"], "the dead owner's came late");
    ring.put(&[whole("k", second, 1, "all")]).await;
    assert_eq!(ring.said("k").await, ["all"]);
    assert_eq!(ring.said("other").await, ["x"]);
}

pub async fn a_part_that_comes_twice_stays_as_it_was(ring: Ring) {
    let a = ring.node("a").await;
    let epoch = ring.win(a, "k", None).await;
    ring.put(&[part("k", epoch, 0, "first")]).await;
    ring.put(&[part("k", epoch, 0, "again"), part("k", epoch, 1, "next")]).await;
    assert_eq!(ring.said("k").await, ["first", "next"]);
}

pub async fn a_session_without_an_owner_keeps_no_new_part(ring: Ring) {
    let a = ring.node("a").await;
    let epoch = ring.win(a, "k", None).await;
    ring.put(&[part("k", epoch, 0, "one")]).await;
    assert_eq!(ring.store.release(id("k"), a, epoch).await, Ok(true));
    ring.put(&[part("k", epoch, 1, "two"), whole("never was", epoch, 0, "x")]).await;
    ring.put(&[whole("k", epoch, 2, "all")]).await;
    assert_eq!(ring.said("k").await, ["one"], "a release keeps what was said");
    assert_eq!(ring.said("never was").await, Vec::<String>::new());
}

pub async fn a_closed_session_takes_its_conversation_with_it(ring: Ring) {
    let a = ring.node("a").await;
    let (epoch, other) = (ring.win(a, "k", None).await, ring.win(a, "other", None).await);
    ring.put(&[part("k", epoch, 0, "one"), part("k", epoch, 1, "two")]).await;
    ring.put(&[part("other", other, 0, "x")]).await;
    assert_eq!(ring.store.close(id("k"), a, epoch).await, Ok(true));
    assert_eq!(ring.row("k").await.owner, None);
    assert_eq!(ring.said("k").await, Vec::<String>::new());
    assert_eq!(ring.said("other").await, ["x"]);
    assert_eq!(ring.store.close(id("k"), a, epoch).await, Ok(false), "nobody's any more");
}

pub async fn a_close_that_is_fenced_deletes_nothing(ring: Ring) {
    let (a, b) = (ring.node("a").await, ring.node("b").await);
    let first = ring.win(a, "k", None).await;
    ring.put(&[part("k", first, 0, "one")]).await;
    let second = ring.taken_over(a, b, "k").await;
    assert_eq!(ring.store.close(id("k"), a, first).await, Ok(false));
    assert_eq!(ring.store.close(id("k"), b, first).await, Ok(false));
    assert_eq!(ring.said("k").await, ["one"]);
    assert_eq!(ring.store.close(id("k"), b, second).await, Ok(true));
}

pub async fn a_sweep_takes_the_conversations_that_nobody_serves(ring: Ring) {
    let (a, dead) = (ring.node("a").await, ring.node("dead").await);
    for (key, owner) in [("live", a), ("released", a), ("orphan", dead)] {
        let epoch = ring.win(owner, key, None).await;
        ring.put(&[part(key, epoch, 0, key)]).await;
        if key == "released" {
            assert_eq!(ring.store.release(id(key), owner, epoch).await, Ok(true));
        }
    }
    ring.kill(dead).await;
    assert_eq!(ring.sweep(LONG, 100).await, 0, "nothing is that old");
    assert_eq!(ring.said("orphan").await, ["orphan"]);
    // Two parts, and the row of the released session; the orphan is closed.
    assert_eq!(ring.sweep(Duration::ZERO, 100).await, 4);
    assert_eq!(ring.said("live").await, ["live"]);
    for key in ["released", "orphan"] {
        assert_eq!(ring.said(key).await, Vec::<String>::new(), "{key}");
    }
}
