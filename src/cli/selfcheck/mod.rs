//! `ringspan selfcheck`: one forwarded round trip through a live ring.

mod probe;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use http::Uri;
pub(super) use probe::Target;
use serde::Serialize;

use super::{Exit, args::SelfcheckArgs, env};
use crate::{
    admin::{client::Client, view::RingInfo},
    config::Secret,
};

/// Sessions to open in search of one that another node owns. In a ring of two, one in two
/// is: all of these fail to find one less than once in sixty thousand runs.
const ATTEMPTS: u32 = 16;

/// What a check found.
#[derive(Debug, Serialize)]
struct Report {
    session: String,
    epoch: String,
    /// Node id; None where no admin listener was asked.
    owner: Option<String>,
    /// Whether the message crossed nodes; None where no admin listener was asked.
    forwarded: Option<bool>,
    /// Why it was not forwarded, where that is all right.
    note: Option<&'static str>,
    attach_seconds: f64,
    round_trip_seconds: f64,
}

/// Checks and reports.
pub(super) async fn run(args: SelfcheckArgs) -> anyhow::Result<Exit> {
    let checked = tokio::time::timeout(args.timeout, check(&args)).await;
    let checked =
        checked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {:?}", args.timeout)));
    let mut out = io::stdout();
    match checked {
        Ok(report) if args.json => {
            let mut report = serde_json::to_value(report)?;
            report["ok"] = true.into();
            writeln!(out, "{report:#}")?;
            Ok(Exit::Success)
        }
        Ok(report) => {
            writeln!(out, "{}", describe(&report))?;
            Ok(Exit::Success)
        }
        Err(error) if args.json => {
            let report = serde_json::json!({ "ok": false, "reason": format!("{error:#}") });
            writeln!(out, "{report:#}")?;
            Ok(Exit::Failure)
        }
        Err(error) => Err(error.context(format!("selfcheck of {}", args.url))),
    }
}

async fn check(args: &SelfcheckArgs) -> anyhow::Result<Report> {
    let bearer = match &args.bearer_env {
        None => None,
        Some(name) => Some(Secret::new(env(name).with_context(|| format!("{name} is not set"))?)),
    };
    let admin = args.admin_url.as_ref().map(|url| Client::new(&url.to_string())).transpose()?;
    let alone = match &admin {
        Some(admin) => active(&admin.ring().await?) < 2,
        None => false,
    };
    let mut target = Target::new(&args.url, &args.route, bearer);
    for attempt in 1..=ATTEMPTS {
        let mut attached = target.attach().await?;
        let (owner, forwarded) = match &admin {
            Some(admin) => ownership(admin, &attached.session).await?,
            None => (None, None),
        };
        if forwarded == Some(false) && !alone && attempt < ATTEMPTS {
            attached.close().await;
            target.refresh();
            continue;
        }
        let note = match forwarded {
            None => Some("whether it was forwarded is not known without --admin-url"),
            Some(false) if alone => {
                Some("the ring has one active node, there is none to forward to")
            }
            Some(false) => anyhow::bail!(
                "all of {ATTEMPTS} fresh sessions were owned by the node that was asked, so \
                 nothing was forwarded, though the ring has other active nodes"
            ),
            Some(true) => None,
        };
        let round_trip = attached.round_trip(&args.model).await?;
        let report = Report {
            session: attached.session.clone(),
            epoch: attached.epoch.clone(),
            owner,
            forwarded,
            note,
            attach_seconds: attached.took.as_secs_f64(),
            round_trip_seconds: round_trip.as_secs_f64(),
        };
        attached.close().await;
        return Ok(report);
    }
    anyhow::bail!("no session was opened")
}

/// Nodes that new sessions may be placed on.
pub(super) fn active(ring: &RingInfo) -> usize {
    ring.members.iter().filter(|member| member.state == "ACTIVE").count()
}

/// Who owns a session, and whether its client was let in by another node.
async fn ownership(
    admin: &Client,
    session: &str,
) -> anyhow::Result<(Option<String>, Option<bool>)> {
    let info = admin.session(session).await.context("the session is not known to the ring")?;
    let forwarded = match &info.local {
        // The node that was asked owns it: the client is the owner's own, or came to
        // another node of the same balancer.
        Some(local) => {
            local.clients.iter().any(|it| Some(&it.edge_node) != info.owner_node.as_ref())
        }
        None => true,
    };
    Ok((info.owner_node, Some(forwarded)))
}

fn describe(report: &Report) -> String {
    let Report { session, epoch, .. } = report;
    let owner = report.owner.as_deref().map(|owner| format!(", owned by {owner}"));
    let forwarded = if report.forwarded == Some(true) { ", forwarded" } else { "" };
    let mut text = format!(
        "ok: session {session}, epoch {epoch}{}{forwarded}\nattach {}, round trip {}",
        owner.unwrap_or_default(),
        millis(Duration::from_secs_f64(report.attach_seconds)),
        millis(Duration::from_secs_f64(report.round_trip_seconds)),
    );
    if let Some(note) = report.note {
        text += "\nnote: ";
        text += note;
    }
    text
}

/// `1.25 ms`.
pub(super) fn millis(took: Duration) -> String {
    format!("{:.2} ms", took.as_secs_f64() * 1_000.0)
}

/// Base of a node's client listener for [`Target::new`].
pub(super) fn base(at: std::net::SocketAddr) -> anyhow::Result<Uri> {
    Ok(format!("http://{at}").parse()?)
}
