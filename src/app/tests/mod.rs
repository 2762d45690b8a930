//! The whole of ownership, ledger and handoff at once, which no lower layer can see.

mod model;
mod strays;
