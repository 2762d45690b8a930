//! `ringspan top`: the ring and its sessions, again and again.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Read as _, Write as _},
};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Exit, args::TopArgs, signals::Signals};
use crate::admin::{
    client::{Client, ClientError},
    terminal::{render_ring, render_sessions},
    view::{Health, RingInfo, SessionPage, SessionQuery},
};

/// Sessions to ask for: more than a terminal has lines.
const SESSIONS: usize = 200;
/// Size of a terminal that does not tell.
const FALLBACK: (u16, u16) = (80, 24);

/// What one look found.
struct Look {
    health: Health,
    ring: RingInfo,
    page: SessionPage,
}

/// Shows until `q`, Ctrl-C or a signal. Without a terminal each look is printed below the
/// one before.
pub(super) async fn run(args: TopArgs) -> anyhow::Result<Exit> {
    let url = args.look.admin.admin_url.to_string();
    let client = Client::new(&url)?;
    let mut signals = Signals::new()?;
    // Before the screen is taken: a wrong address should be read on the ordinary one.
    let mut look = look(&client).await;
    if let Err(error) = look {
        return Err(error.into());
    }
    let screen = if args.look.json { None } else { Screen::enter() };
    let mut keys = if screen.is_some() { keys() } else { mpsc::channel(1).1 };
    loop {
        match (&look, &screen) {
            (Ok(look), None) if args.look.json => writeln!(io::stdout(), "{}", as_json(look))?,
            (Ok(look), None) => writeln!(io::stdout(), "{}", as_text(look))?,
            (Ok(look), Some(_)) => Screen::draw(&url, &as_text(look))?,
            (Err(error), Some(_)) => Screen::draw(&url, &error.to_string())?,
            // What reads a pipe sees an end better than a pause.
            (Err(_), None) => break,
        }
        tokio::select! {
            () = tokio::time::sleep(args.interval) => {}
            () = signals.recv() => return Ok(Exit::Success),
            Some(key) = keys.recv() => match key {
                b'q' | b'Q' => return Ok(Exit::Success),
                _ => {}
            },
        }
        look = self::look(&client).await;
    }
    look.map(|_| Exit::Success).map_err(Into::into)
}

async fn look(client: &Client) -> Result<Look, ClientError> {
    let query = SessionQuery { limit: Some(SESSIONS), ..SessionQuery::default() };
    let (health, ring, page) =
        tokio::try_join!(client.health(), client.ring(), client.sessions(&query))?;
    Ok(Look { health, ring, page })
}

fn as_json(look: &Look) -> serde_json::Value {
    json!({ "health": look.health, "ring": look.ring, "sessions": look.page.sessions })
}

fn as_text(look: &Look) -> String {
    let Look { health, ring, page } = look;
    let more = if page.next.is_some() { "+" } else { "" };
    let draining = if health.draining { ", draining" } else { "" };
    let certified = if health.certified { " (outlived by certificate)" } else { "" };
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} {}, up {:.0}s{draining}, lease {:.1}s{certified}, database {}",
        health.node_id,
        health.build,
        health.uptime_seconds,
        health.lease_remaining_seconds,
        json!(health.database).as_str().unwrap_or_default(),
    );
    let _ = writeln!(text, "{}", render_ring(ring));
    let _ = writeln!(text, "{}{more} sessions", page.sessions.len());
    text + &render_sessions(&page.sessions)
}

/// Keys as they are pressed. The thread lives as long as the process: a read of a terminal
/// cannot be interrupted.
fn keys() -> mpsc::Receiver<u8> {
    let (keys, pressed) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut key = [0];
        while let Ok(1) = io::stdin().read(&mut key) {
            if keys.blocking_send(key[0]).is_err() {
                return;
            }
        }
    });
    pressed
}

/// The terminal's other screen, until it is dropped.
struct Screen {
    /// Settings of the terminal as they were.
    before: Termios,
}

impl Screen {
    /// Takes the terminal; None if there is none to take.
    fn enter() -> Option<Self> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return None;
        }
        let before = tcgetattr(io::stdin()).ok()?;
        let mut single_keys = before.clone();
        single_keys.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        tcsetattr(io::stdin(), OptionalActions::Now, &single_keys).ok()?;
        let screen = Self { before };
        // Alternate screen, hidden cursor.
        write!(io::stdout(), "\x1b[?1049h\x1b[?25l").ok()?;
        Some(screen)
    }

    /// Shows `text`, cut to the size of the terminal.
    fn draw(url: &str, text: &str) -> io::Result<()> {
        let (columns, rows) = size();
        let head = format!("ringspan top  {url}  q to quit\n\n{text}");
        let mut frame = "\x1b[H".to_owned();
        for line in head.lines().take(rows.saturating_sub(1)) {
            frame.extend(line.chars().take(columns));
            // Rest of the line, then the next one: no flicker of a cleared screen.
            frame.push_str("\x1b[K\r\n");
        }
        frame.push_str("\x1b[J");
        let mut out = io::stdout();
        out.write_all(frame.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout();
        // A terminal that is gone needs nothing back.
        let _ = write!(out, "\x1b[?25h\x1b[?1049l").and_then(|()| out.flush());
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Columns and rows.
fn size() -> (usize, usize) {
    let (columns, rows) = match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => FALLBACK,
    };
    (usize::from(columns), usize::from(rows))
}
