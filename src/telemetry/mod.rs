//! What a node says of itself to those who run it: metrics, logs and traces.
//!
//! *Invariant:* no label, field or attribute carries a payload, a credential or a session
//! key; every label's values are bounded by the code or by the configuration.

pub mod events;
pub mod metrics;
mod otlp;
pub mod propagation;
pub mod tracing;

pub use metrics::Metrics;
pub(crate) use tracing::AUDIT;
pub use tracing::{Guard, InitError, init};
