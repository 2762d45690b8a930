//! Since when this node has known each member. By its own monotonic clock: nothing is
//! decided by it but whom to prefer among heirs that are alike.

use std::{collections::BTreeMap, time::Instant};

use crate::{ids::Incarnation, store::RingView};

/// How long the members of the present view have been in it. Bounded by the view.
#[derive(Clone, Debug)]
pub(super) struct Tenure {
    /// When this node saw the ring first.
    began: Instant,
    since: BTreeMap<Incarnation, Instant>,
}

impl Tenure {
    /// Of the first view, seen at `now`.
    pub(super) fn new(view: &RingView, now: Instant) -> Self {
        Self { began: now, since: BTreeMap::new() }.of_view(view, now)
    }

    /// Of a later view.
    pub(super) fn of_view(&self, view: &RingView, now: Instant) -> Self {
        let seen = |incarnation| self.since.get(&incarnation).copied().unwrap_or(now);
        let members = view.members.iter().map(|member| member.incarnation);
        Self { began: self.began, since: members.map(|it| (it, seen(it))).collect() }
    }

    /// Whether `member` has come in the second half of the time that this node has seen.
    /// In a roll these are the nodes that have been replaced already; in a ring that nobody
    /// touches there are none, so that the sessions of one node spread over all.
    pub(super) fn is_newcomer(&self, member: Incarnation, now: Instant) -> bool {
        let half = now.saturating_duration_since(self.began) / 2;
        self.since.get(&member).is_some_and(|since| *since > self.began + half)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ring::placement::tests::nodes;

    const SECOND: Duration = Duration::from_secs(1);

    fn view(members: i64) -> RingView {
        RingView { version: members, members: nodes(members), ..RingView::default() }
    }

    #[test]
    fn who_came_in_the_second_half_is_a_newcomer() {
        let began = Instant::now();
        let tenure = Tenure::new(&view(3), began).of_view(&view(4), began + 10 * SECOND);
        let tenure = tenure.of_view(&view(5), began + 18 * SECOND);
        let newcomers = |now| {
            let members = (1..=5).map(Incarnation);
            members.filter(|member| tenure.is_newcomer(*member, now)).collect::<Vec<_>>()
        };
        assert_eq!(newcomers(began + 19 * SECOND), [Incarnation(4), Incarnation(5)]);
        assert_eq!(newcomers(began + 21 * SECOND), [Incarnation(5)]);
        assert_eq!(newcomers(began + 60 * SECOND), [], "nobody stays new");
    }

    #[test]
    fn a_member_that_has_left_is_forgotten() {
        let began = Instant::now();
        let tenure = Tenure::new(&view(2), began).of_view(&view(3), began + SECOND);
        let tenure = tenure.of_view(&view(2), began + 2 * SECOND);
        assert_eq!(tenure.since.len(), 2);
    }
}
