//! A middleware that gives what the service says in capitals. What the peer says goes past it.

use inet_middleware::{ErrorCode, Half, Middleware, Sees, export};

struct UpperCase;

impl Middleware for UpperCase {
    const SEES: Sees = Sees::Outbound;

    async fn outbound(half: &mut Half) -> Result<(), ErrorCode> {
        let mut buffer = Vec::new();
        while half.read(&mut buffer).await? > 0 {
            half.write_all(buffer.to_ascii_uppercase()).await?;
            buffer.clear();
        }
        Ok(())
    }
}

export!(UpperCase);
