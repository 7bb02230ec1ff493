//! A chat room for lines, by the streams contract. It is for `--isolation service`: those whose connections share an
//! instance are in one room. With an instance for each connection everybody is alone.
//!
//! The first line is a name. Each line after it is sent to all others with that name before it. A member that reads too
//! slowly misses lines, and is told how many, so that it holds up nobody.

mod room;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use inet_guest::streams::{Bell, Connection, ErrorCode, Lines, Outbound, Service, export};
use room::Member;

/// The longest line, in bytes before its `\n`.
const MAX_LINE: usize = 1024;

struct Chat;

impl Service for Chat {
    async fn serve(connection: Connection) -> Result<(), ErrorCode> {
        let Connection {
            inbound,
            mut outbound,
            ..
        } = connection;
        let mut lines = inbound.lines(MAX_LINE);
        let Some((member, bell)) = enter(&mut lines, &mut outbound).await? else {
            return Ok(());
        };
        let mut listening = pin!(listen(&member, bell, outbound));
        let mut talking = pin!(talk(&member, lines));
        let mut talked = None;
        poll_fn(|cx| {
            if talked.is_none()
                && let Poll::Ready(how) = talking.as_mut().poll(cx)
            {
                // What the others have said is still sent.
                member.leave();
                talked = Some(how);
            }
            // It ends when the member has left, or is gone.
            let listened = listening.as_mut().poll(cx);
            listened.map(|heard| talked.unwrap_or(Ok(())).and(heard))
        })
        .await
    }
}

/// Asks for a name until there is one that can be had; `None` if the peer is done before.
async fn enter(lines: &mut Lines, outbound: &mut Outbound) -> Result<Option<(Member, Bell)>, ErrorCode> {
    let mut question = "Your name?\n".to_owned();
    loop {
        outbound.write_all(question).await?;
        let Some(line) = lines.next().await? else {
            return Ok(None);
        };
        match Member::enter(&plain(line)) {
            Ok(entered) => return Ok(Some(entered)),
            Err(refusal) => question = format!("{refusal}. Your name?\n"),
        }
    }
}

/// Sends what the member says to all others, until it is done.
async fn talk(member: &Member, mut lines: Lines) -> Result<(), ErrorCode> {
    while let Some(line) = lines.next().await? {
        let text = plain(line);
        if text == "/quit" {
            break;
        }
        if !text.is_empty() {
            member.say(&text);
        }
    }
    Ok(())
}

/// Sends to the member what the others say, until it has left and nothing is left to be sent.
async fn listen(member: &Member, mut bell: Bell, mut outbound: Outbound) -> Result<(), ErrorCode> {
    while let Some(bytes) = member.heard(&mut bell).await {
        outbound.write_all(bytes).await?;
    }
    Ok(())
}

/// A line as text, without its end and without what controls a terminal.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim().chars().filter(|c| !c.is_control()).collect()
}

export!(Chat);
