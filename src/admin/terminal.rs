//! Ring and sessions as aligned text for a terminal.

use std::{collections::BTreeSet, fmt::Write as _};

use super::view::{LocalSession, RingInfo, SessionInfo};

/// Longest cell; longer texts are cut, so that one odd key does not break the table.
const MAX_CELL: usize = 40;

/// The ring as a table; `*` marks the node that answered.
#[must_use]
pub fn render_ring(ring: &RingInfo) -> String {
    let mut table = Table::new(&[
        ("", Align::Left),
        ("NODE", Align::Left),
        ("STATE", Align::Left),
        ("LOAD", Align::Right),
        ("CAPACITY", Align::Right),
        ("SHARE", Align::Right),
        ("LEASE", Align::Right),
        ("ZONE", Align::Left),
        ("BUILD", Align::Left),
        ("PEER", Align::Left),
        ("INCARNATION", Align::Right),
    ]);
    for member in &ring.members {
        let mine = if ring.me == Some(member.incarnation) { "*" } else { "" };
        table.row([
            mine.to_owned(),
            member.node_id.clone(),
            member.state.clone(),
            member.load.to_string(),
            member.capacity.to_string(),
            format!("{:.1}%", member.share * 100.0),
            format!("{:.1}s", member.lease_remaining_seconds),
            member.zone.clone().unwrap_or_else(|| "-".to_owned()),
            member.build.clone(),
            member.peer_addr.clone(),
            member.incarnation.to_string(),
        ]);
    }
    format!("ring version {}, {} members\n{}", ring.version, ring.members.len(), table.render())
}

/// Sessions as a table. What only an owner knows is `-` for the sessions of other nodes.
#[must_use]
pub fn render_sessions(sessions: &[SessionInfo]) -> String {
    if sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let mut table = Table::new(&[
        ("SESSION", Align::Left),
        ("KEY", Align::Left),
        ("ROUTE", Align::Left),
        ("OWNER", Align::Left),
        ("EPOCH", Align::Right),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("CLIENTS", Align::Right),
        ("EDGES", Align::Left),
        ("UPSTREAM", Align::Left),
        ("TURNS", Align::Right),
        ("HEAD", Align::Right),
    ]);
    for session in sessions {
        let dash = || "-".to_owned();
        let local = session.local.as_ref();
        let state = match local {
            Some(local) if local.busy => format!("{} busy", session.state),
            _ => session.state.clone(),
        };
        let upstream = local.map(|local| format!("{:?}", local.upstream).to_lowercase());
        table.row([
            session.id.clone(),
            session.key.clone().unwrap_or_else(dash),
            session.route.clone(),
            session.owner_node.clone().unwrap_or_else(dash),
            session.epoch.to_string(),
            state,
            duration(session.age_seconds),
            local.map_or_else(dash, |local| local.clients.len().to_string()),
            local.map(edges).filter(|edges| !edges.is_empty()).unwrap_or_else(dash),
            upstream.unwrap_or_else(dash),
            local.map_or_else(dash, |local| {
                format!("{}+{}/{}", local.turns_running, local.turns_queued, local.turns_done)
            }),
            local.map_or_else(dash, |local| local.head_seq.to_string()),
        ]);
    }
    table.render()
}

/// The nodes that hold the clients' sockets, each once.
fn edges(local: &LocalSession) -> String {
    let nodes = local.clients.iter().map(|client| client.edge_node.as_str());
    let nodes: BTreeSet<&str> = nodes.collect();
    nodes.into_iter().collect::<Vec<_>>().join(",")
}

/// `12s`, `3m04s`, `2h05m`, `3d04h`.
fn duration(seconds: f64) -> String {
    // Floats beyond u64 saturate, negative ones and NaN become zero.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as said above")]
    let total = seconds as u64;
    let (minutes, hours, days) = (total / 60, total / 3_600, total / 86_400);
    match total {
        0..60 => format!("{total}s"),
        60..3_600 => format!("{minutes}m{:02}s", total % 60),
        3_600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}

/// Columns as wide as their widest cell.
struct Table<const N: usize> {
    aligns: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(head: &[(&str, Align); N]) -> Self {
        Self { aligns: head.map(|(_, align)| align), rows: vec![head.map(|(name, _)| name.into())] }
    }

    fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell)));
    }

    fn render(&self) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, align), width) in row.iter().zip(self.aligns).zip(widths) {
                if width == 0 {
                    continue;
                }
                let _ = match align {
                    Align::Left => write!(line, "{cell:width$}  "),
                    Align::Right => write!(line, "{cell:>width$}  "),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A text of others, fit for a terminal: no control characters (a session key could move
/// the cursor), and not longer than a cell.
fn printable(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut cell: String = clean.clone().take(MAX_CELL).collect();
    if clean.count() > MAX_CELL {
        cell.pop();
        cell.push('…');
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::fake;

    #[test]
    fn columns_stand_under_their_heads() {
        let text = render_ring(&fake::ring());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ring version 12, 3 members");
        for head in ["STATE", "ZONE", "BUILD"] {
            let column = lines[1].find(head).unwrap();
            for line in &lines[2..] {
                assert_eq!(&line[column - 2..column], "  ", "{head}\n{text}");
                assert_ne!(&line[column..=column], " ", "{head}\n{text}");
            }
        }
        assert!(lines[2].starts_with('*'), "{text}");
        assert!(lines[3].contains("DRAINING"), "{text}");
    }

    #[test]
    fn a_key_cannot_move_the_cursor_or_break_the_table() {
        let mut session = fake::session(1);
        session.key = Some(format!("\u{1b}[2J\n{}", "x".repeat(500)));
        let text = render_sessions(&[session, fake::session(2)]);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(text.lines().all(|line| line.chars().count() < 200), "{text}");
    }

    #[test]
    fn ages_are_short() {
        let ages = [5.9, 64.0, 7_500.0, 273_600.0].map(duration);
        assert_eq!(ages, ["5s", "1m04s", "2h05m", "3d04h"]);
    }

    #[test]
    fn no_sessions_are_said_in_words() {
        assert_eq!(render_sessions(&[]), "no sessions\n");
    }
}
