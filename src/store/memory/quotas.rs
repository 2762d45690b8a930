//! What one principal uses on all nodes.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::table::{Table, remove};
use crate::{
    ids::{Incarnation, Principal},
    store::{TurnAdmission, TurnWish},
};

#[derive(Default)]
#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
pub(super) struct Quotas {
    shares: BTreeMap<(Principal, Incarnation), u32>,
    /// When the next turn would be due without any burst.
    paces: BTreeMap<Principal, Instant>,
}

impl Table {
    pub(super) fn admit_turn(&mut self, wish: &TurnWish, now: Instant) -> TurnAdmission {
        let others = self.quotas.shares.iter().filter(|((principal, node), _)| {
            *principal == wish.principal && *node != wish.me && self.is_alive(*node)
        });
        let running: u32 = others.map(|(_, turns)| *turns).sum::<u32>() + wish.running;
        if wish.at_once.is_some_and(|limit| running > limit) {
            return TurnAdmission::TooMany;
        }
        if let Some(pace) = wish.pace {
            let due = self.quotas.paces.get(&wish.principal).map_or(now, |next| (*next).max(now));
            let wait = (due - now).saturating_sub(pace.tolerance());
            if !wait.is_zero() {
                return TurnAdmission::TooFast(wait);
            }
            self.quotas.paces.insert(wish.principal, due + pace.interval);
        }
        if wish.at_once.is_some() {
            self.quotas.shares.insert((wish.principal, wish.me), wish.running);
        }
        TurnAdmission::Admitted
    }

    pub(super) fn keep_turns(&mut self, me: Incarnation, principal: Principal, running: u32) {
        if running == 0 {
            self.quotas.shares.remove(&(principal, me));
        } else if let Some(turns) = self.quotas.shares.get_mut(&(principal, me)) {
            *turns = running;
        }
    }

    /// Removes what is counted for nodes that are no more and of principals that rest.
    pub(super) fn sweep_shares(&mut self, limit: u32) -> u64 {
        let mut quotas = std::mem::take(&mut self.quotas);
        let gone = remove(&mut quotas.shares, limit, |(_, node), _| !self.is_alive(*node));
        self.quotas = quotas;
        gone
    }

    pub(super) fn sweep_paces(&mut self, limit: u32, old: impl Fn(Instant) -> bool) -> u64 {
        remove(&mut self.quotas.paces, limit, |_, next| old(*next))
    }
}
