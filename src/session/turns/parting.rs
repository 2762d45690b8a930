//! What becomes of turns when their session leaves for another node. Pure.

use super::{Action, TurnNo, Turns, lane::Turn};
/// A turn that was ended because its session had to leave: whether it finished is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Severed {
    pub turn: TurnNo,
    /// None while the upstream had not named it.
    pub response_id: Option<String>,
}

impl Turns {
    /// From now on nothing is dispatched that can as well be dispatched by the next owner. A
    /// turn that was dispatched before and waits to run once more is not of that kind: the
    /// next owner could not know that it had its second run.
    pub fn hold(&mut self) {
        self.holding = true;
    }

    /// It stays for a while after all: what waits is dispatched. Not where the ledger was told
    /// that a turn is left behind, which it would not begin again.
    pub fn go_on(&mut self) -> Vec<Action> {
        let mut waiting = self.lanes.iter().flat_map(|lane| &lane.queue);
        self.holding = waiting.any(|turn| turn.journaled);
        let mut actions = Vec::new();
        self.dispatch(&mut actions);
        actions
    }

    /// Whether nothing of a turn would be left behind. What waits here was never dispatched,
    /// and its edge sends it to the next owner.
    #[must_use]
    pub fn may_leave(&self) -> bool {
        self.running() == 0
            && !self.lanes.iter().flat_map(|lane| lane.running.iter().chain(&lane.queue)).any(
                |turn| {
                    // A turn whose client is gone is not dispatched here either.
                    turn.redispatched && turn.client.is_some()
                },
            )
    }

    /// What the ledger is told of turns that are left to the next owner: they were not sent,
    /// or nobody knows.
    #[must_use]
    pub fn leave_behind(&self) -> Vec<Action> {
        self.lanes.iter().flat_map(|lane| &lane.queue).filter_map(Turn::cut_short).collect()
    }

    /// Whether no turn is here at all, not even one whose client is gone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.running.is_none() && lane.queue.is_empty())
    }

    /// Whether another connection can go on where this one is: it is told what was said, or
    /// the upstream keeps it.
    #[must_use]
    pub fn can_be_told(&self) -> bool {
        !self.untold
    }

    /// The session must leave now: what was dispatched ends as unknown.
    pub fn sever(&mut self) -> (Vec<Action>, Vec<Severed>) {
        const TEXT: &str = "this node had to stop during this turn; whether it finished is unknown";
        let (mut actions, mut severed, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for lane in &mut self.lanes {
            // What the ledger was being told of was not sent.
            lane.withdraw();
            let again = lane.queue.iter().position(|turn| turn.redispatched);
            let waiting = again.and_then(|at| lane.queue.remove(at));
            let turns = lane.running.take().into_iter().chain(waiting);
            lost.extend(turns.map(|turn| (turn, lane.name.clone())));
        }
        for (turn, lane) in lost {
            severed.push(self.lose(turn, lane.as_deref(), TEXT, &mut actions));
        }
        // The next owner may send these, under numbers of its own.
        actions.extend(self.leave_behind());
        if !severed.is_empty() {
            self.lost_connection();
            actions.push(Action::HangUp);
        }
        (actions, severed)
    }

    /// A turn that an earlier owner severed: its events can be asked for here. Its number.
    pub fn adopt(&mut self, response_id: String) -> TurnNo {
        let no = self.next;
        self.next += 1;
        self.remember_ended(response_id, no);
        no
    }
}
