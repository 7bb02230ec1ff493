//! Does what it is told by lines, for tests of instances that connections share.
//!
//! `trap` traps, `spin` loops for ever, `sleep` waits for ever in a call to the host, `count`
//! counts the connections that the instance has had, `open` those that have not ended, `take KIB`
//! takes memory, `say` writes to standard error, `mutter` does so without a line break, `reset`
//! resets the connection, `close` and `reopen` raise and lower the back-pressure, `haunt` has it
//! loop for ever when the peer is done, `give-up` has it write without end and give up each write
//! that waits. Whatever else is given back. With `MOOD` in the environment it does that to every
//! connection before it hears anything.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use inet_guest::streams::{Connection, ErrorCode, Outbound, Service, export};
use inet_guest::timeout;

thread_local! {
    static COUNT: Cell<u32> = const { Cell::new(0) };
    static OPEN: Cell<u32> = const { Cell::new(0) };
    static TAKEN: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

struct Moody;

impl Service for Moody {
    async fn serve(connection: Connection) -> Result<(), ErrorCode> {
        COUNT.set(COUNT.get() + 1);
        let _open = Open::new();
        if let Ok(mood) = std::env::var("MOOD") {
            obey(&mood)?;
        }
        let (mut lines, mut outbound) = (connection.inbound.lines(64 << 10), connection.outbound);
        let mut haunts = false;
        loop {
            let line = match lines.next().await {
                Ok(Some(line)) => line,
                how if haunts => {
                    eprintln!("haunted: {how:?}");
                    obey("spin")?;
                    return Ok(());
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    eprintln!("ended: {error:?}");
                    return Err(error);
                }
            };
            let order = String::from_utf8_lossy(line);
            haunts |= order.trim_end() == "haunt";
            if order.trim_end() == "give-up" {
                give_up(&mut outbound).await?;
            }
            let answer = obey(order.trim_end())?;
            outbound
                .write_all(answer.unwrap_or_else(|| line.to_vec()))
                .await?;
        }
    }
}

/// Writes without end, and gives up each write that takes longer than a moment.
async fn give_up(outbound: &mut Outbound) -> Result<(), ErrorCode> {
    loop {
        match timeout(
            Duration::from_millis(10),
            outbound.write_all(vec![b'x'; 64 << 10]),
        )
        .await
        {
            Ok(written) => written?,
            Err(_given_up) => {}
        }
    }
}

/// Does what `order` says, and gives what there is to answer.
fn obey(order: &str) -> Result<Option<Vec<u8>>, ErrorCode> {
    match order {
        "trap" => std::process::abort(),
        "spin" => {
            eprintln!("spins");
            loop {
                std::hint::black_box(order);
            }
        }
        "sleep" => {
            eprintln!("sleeps");
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        "say" => eprintln!("as it was told"),
        "mutter" => eprint!("without an end"),
        "close" => wit_bindgen::backpressure_inc(),
        "reopen" => wit_bindgen::backpressure_dec(),
        "reset" => return Err(ErrorCode::Refused),
        "count" => return Ok(Some(format!("{}\n", COUNT.get()).into())),
        "open" => return Ok(Some(format!("{}\n", OPEN.get()).into())),
        _ => {
            if let Some(size) = order
                .strip_prefix("take ")
                .and_then(|size| size.parse::<usize>().ok())
            {
                let mut memory = Vec::new();
                if memory.try_reserve_exact(size << 10).is_err() {
                    return Ok(Some(b"refused\n".to_vec()));
                }
                memory.resize(size << 10, 1);
                TAKEN.with_borrow_mut(|taken| taken.push(memory));
                return Ok(Some(b"taken\n".to_vec()));
            }
        }
    }
    Ok(None)
}

/// A connection that has not ended.
struct Open;

impl Open {
    fn new() -> Self {
        OPEN.set(OPEN.get() + 1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.set(OPEN.get() - 1);
    }
}

export!(Moody);
