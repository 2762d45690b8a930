//! The text format that came before `OpenMetrics`, 0.0.4, for scrapers that ask for no other.
//! Samples are the same in both; what is said of them differs.

use std::fmt::Write as _;

/// Rewrites what the registry encodes. There a comment names a family, here the series: the
/// suffix of counters is part of the name, information is a gauge, units and the end have no
/// line.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 4 * 1024);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // The name that is due stands in the next line.
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some((family, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            // Writing to a string cannot fail.
            if let Some(help) = help.take() {
                let _ = writeln!(text, "# HELP {family}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {family}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
