//! What the user sees: whole lines of several processes, below them how far a start is.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Write as _},
    sync::Arc,
};

use parking_lot::Mutex;

/// Lines of nodes that are kept while they start; older ones are dropped.
const MAX_HELD: usize = 500;
/// Colours of nodes, in turn: SGR codes that are legible on light and dark.
const COLOURS: [&str; 6] = ["36", "33", "35", "32", "34", "31"];
/// Back to the start of the line, and nothing on it.
const CLEAR_LINE: &str = "\r\x1b[K";

/// A cheap handle. Writing to a terminal that is gone is not an error here: the ring is
/// ended by the signal that comes with it.
#[derive(Clone)]
pub(super) struct Screen(Arc<Mutex<State>>);

struct State {
    terminal: bool,
    colour: bool,
    /// Shown last, if this is a terminal.
    progress: Option<String>,
    /// Lines of nodes; None once they are shown as they come.
    held: Option<VecDeque<String>>,
}

impl Screen {
    /// Holds back what nodes say until [`Screen::release`].
    pub(super) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        let held = Some(VecDeque::new());
        Self(Arc::new(Mutex::new(State { terminal, colour, progress: None, held })))
    }

    /// Shows a text, with its line ends.
    pub(super) fn print(&self, text: &str) {
        self.0.lock().write(text);
    }

    /// Shows how far the start is, in the place of what was said before.
    pub(super) fn progress(&self, text: &str) {
        let mut state = self.0.lock();
        if state.terminal {
            state.progress = Some(format!("{text} …"));
            state.write("");
        } else {
            state.write(&format!("{text}\n"));
        }
    }

    /// There is no more progress to be shown.
    pub(super) fn progress_done(&self) {
        let mut state = self.0.lock();
        if state.progress.take().is_some() {
            state.write(CLEAR_LINE);
        }
    }

    /// A line of a node.
    pub(super) fn log(&self, node: &str, line: &str) {
        let mut state = self.0.lock();
        let line = match colour_of(node).filter(|_| state.colour) {
            Some(colour) => format!("\x1b[{colour}m{node} |\x1b[0m {line}\n"),
            None => format!("{node} | {line}\n"),
        };
        match &mut state.held {
            Some(held) => {
                if held.len() == MAX_HELD {
                    held.pop_front();
                }
                held.push_back(line);
            }
            None => state.write(&line),
        }
    }

    /// Shows those of the lines held back that `worth` says so of, and from now on all.
    pub(super) fn release(&self, worth: impl Fn(&str) -> bool) {
        let mut state = self.0.lock();
        state.progress = None;
        for line in state.held.take().into_iter().flatten().filter(|line| worth(line)) {
            state.write(&line);
        }
    }
}

impl State {
    fn write(&self, text: &str) {
        let mut out = io::stdout().lock();
        let written = match &self.progress {
            Some(progress) => write!(out, "{CLEAR_LINE}{text}{progress}"),
            None => out.write_all(text.as_bytes()),
        };
        let _ = written.and_then(|()| out.flush());
    }
}

/// The colour of `node-3`.
fn colour_of(node: &str) -> Option<&'static str> {
    let number: usize = node.rsplit('-').next()?.parse().ok()?;
    COLOURS.get(number.checked_sub(1)? % COLOURS.len()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_have_different_colours() {
        assert_ne!(colour_of("node-1"), colour_of("node-2"));
        assert_eq!(colour_of("node-1"), colour_of("node-7"));
        assert_eq!(colour_of("x"), None);
    }

    #[test]
    fn what_nodes_say_while_they_start_is_bounded() {
        let screen = Screen::new();
        for n in 0..2 * MAX_HELD {
            screen.log("node-1", &n.to_string());
        }
        assert_eq!(screen.0.lock().held.as_ref().map(VecDeque::len), Some(MAX_HELD));
    }
}
