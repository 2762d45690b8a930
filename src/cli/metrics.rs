//! `ringspan metrics list`.

use std::io::Write;

use super::{Exit, args::MetricsCommand};
use crate::telemetry::metrics::{Metrics, render_table};

/// Prints every metric.
pub(super) fn run(command: &MetricsCommand, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let MetricsCommand::List { json } = command;
    let list = Metrics::new().list();
    if *json {
        writeln!(out, "{:#}", serde_json::to_value(&list)?)?;
    } else {
        out.write_all(render_table(&list).as_bytes())?;
    }
    Ok(Exit::Success)
}
