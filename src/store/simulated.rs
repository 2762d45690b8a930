//! Stores of a simulation, which hands them out by URL in place of databases.

use std::{cell::RefCell, sync::Arc};

use super::{Store, StoreOptions};

type Opener = Box<dyn Fn(&StoreOptions) -> Arc<dyn Store>>;

thread_local! {
    static OPENER: RefCell<Option<Opener>> = const { RefCell::new(None) };
}

/// From now on the stores that this thread opens are those of `opener`.
pub fn serve(opener: impl Fn(&StoreOptions) -> Arc<dyn Store> + 'static) {
    OPENER.with_borrow_mut(|at| *at = Some(Box::new(opener)));
}

pub(super) fn open(options: &StoreOptions) -> Option<Arc<dyn Store>> {
    OPENER.with_borrow(|opener| opener.as_ref().map(|opener| opener(options)))
}
