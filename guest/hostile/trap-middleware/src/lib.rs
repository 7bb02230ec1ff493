//! A middleware that takes what the peer sends to the service as it is, until there is a `!` in it,
//! at which it traps. If the environment has `TRAP_CHECK`, it panics when it checks its
//! configuration.

use inet_middleware::{ErrorCode, Half, Middleware, Sees, export};

struct Trap;

impl Middleware for Trap {
    const SEES: Sees = Sees::Inbound;

    fn check() -> Result<(), String> {
        assert!(
            std::env::var_os("TRAP_CHECK").is_none(),
            "the check was asked for a panic"
        );
        Ok(())
    }

    async fn inbound(half: &mut Half) -> Result<(), ErrorCode> {
        let mut chunk = Vec::new();
        while half.read(&mut chunk).await? > 0 {
            if chunk.contains(&b'!') {
                std::process::abort();
            }
            half.write_all(std::mem::take(&mut chunk)).await?;
        }
        Ok(())
    }
}

export!(Trap);
