//! Converts the bytes that the service sends to upper case. Bytes from the peer pass unchanged.

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
