//! `ringspan ring`, `sessions` and `drain`: a running ring from outside, through the admin
//! listener of one node.

use std::io::Write;

use anyhow::Context as _;
use serde_json::json;

use super::{
    Exit,
    args::{DrainArgs, LookArgs, SessionsArgs},
    env,
};
use crate::{
    admin::{
        client::Client,
        terminal::{render_ring, render_sessions},
        view::{DrainAnswer, DrainOrder, RingInfo, SessionPage, SessionQuery},
    },
    config::{AdminToken, Secret},
};

/// Prints the members.
pub(super) async fn ring(args: LookArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    let ring = client(&args)?.ring().await?;
    if args.json {
        writeln!(out, "{:#}", serde_json::to_value(&ring)?)?;
    } else {
        out.write_all(render_ring(&ring).as_bytes())?;
    }
    Ok(Exit::Success)
}

/// Prints sessions, at most as many as asked for, and says if there are more.
pub(super) async fn sessions(args: SessionsArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    let client = client(&args.look)?;
    let mut found = SessionPage { sessions: Vec::new(), next: args.after.clone() };
    loop {
        let missing = args.limit - found.sessions.len();
        let page = client
            .sessions(&SessionQuery {
                owner: args.owner.clone(),
                key: args.key.clone(),
                after: found.next.take(),
                limit: Some(missing.min(SessionQuery::MAX_LIMIT)),
            })
            .await?;
        found.sessions.extend(page.sessions);
        found.next = page.next;
        if found.next.is_none() || found.sessions.len() >= args.limit {
            break;
        }
    }
    if args.look.json {
        writeln!(out, "{:#}", serde_json::to_value(&found)?)?;
    } else {
        out.write_all(render_sessions(&found.sessions).as_bytes())?;
        if let Some(next) = &found.next {
            writeln!(out, "there may be more: --after {next}, or a greater --limit")?;
        }
    }
    Ok(Exit::Success)
}

/// Has the node behind the admin listener drain, if it is the one that is meant.
pub(super) async fn drain(args: DrainArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    let client = client(&args.look)?.with_token(admin_token(&args)?);
    let reached = client.health().await?.node_id;
    if reached != args.node {
        anyhow::bail!(other_node(&args, &reached, &client.ring().await?));
    }
    let within_seconds = args.within.map(|within| within.as_secs());
    let answer = client.drain(DrainOrder { within_seconds, force: args.force }).await?;
    if args.look.json {
        writeln!(out, "{:#}", json!({ "node": reached, "drain": answer }))?;
    } else {
        let said = match answer {
            DrainAnswer::Accepted => "drains: it takes no new sessions and hands its own over",
            DrainAnswer::Already => "was draining before; its deadline stays as it was",
            DrainAnswer::Tightened => "was draining before; it is to end sooner now",
            DrainAnswer::LastActive => {
                "does not drain: no other node could own sessions; --force has it drain all the same"
            }
            DrainAnswer::Refused => "cannot drain: it has not joined the ring, or is leaving it",
        };
        writeln!(out, "{reached} {said}")?;
    }
    let refused = matches!(answer, DrainAnswer::Refused | DrainAnswer::LastActive);
    Ok(if refused { Exit::Failure } else { Exit::Success })
}

fn client(args: &LookArgs) -> anyhow::Result<Client> {
    Ok(Client::new(&args.admin.admin_url.to_string())?)
}

/// The token of the file, else of the variable; a listener without one asks for none.
fn admin_token(args: &DrainArgs) -> anyhow::Result<Option<Secret>> {
    let Some(path) = &args.admin_token_file else {
        return Ok(env("RINGSPAN_ADMIN_TOKEN").filter(|token| !token.is_empty()).map(Secret::new));
    };
    let text = std::fs::read(path).with_context(|| format!("the token of {}", path.display()))?;
    let token = AdminToken::parse(&text);
    Ok(Some(token.with_context(|| format!("{} holds no admin token", path.display()))?))
}

/// A node drains itself only, and the ring does not know admin addresses: what to do when
/// another one answered.
fn other_node(args: &DrainArgs, reached: &str, ring: &RingInfo) -> String {
    let (wanted, url) = (&args.node, &args.look.admin.admin_url);
    if let Some(member) = ring.members.iter().find(|member| member.node_id == *wanted) {
        return format!(
            "{url} is the admin listener of {reached}, and a node drains itself only: repeat \
             this with --admin-url of {wanted}, which runs where its peer address {} is",
            member.peer_addr
        );
    }
    let names: Vec<_> = ring.members.iter().map(|member| member.node_id.as_str()).collect();
    format!("the ring has no node {wanted}; its members are {}", names.join(", "))
}
