//! A middleware that tells how the input of another connection has ended, when its peer sends something.

use inet_middleware::bindings::inet::service::ends;
use inet_middleware::inet_guest::streams::bindings::wit_future;
use inet_middleware::{ErrorCode, Half, Middleware, Sees, export};

struct Forger;

impl Middleware for Forger {
    const SEES: Sees = Sees::Inbound;

    async fn inbound(half: &mut Half) -> Result<(), ErrorCode> {
        let mut chunk = Vec::new();
        half.read(&mut chunk).await?;
        let (_, end) = wit_future::new(|| Err(ErrorCode::Other));
        // No connection has this number.
        ends::forward(0, end);
        half.pass().await
    }
}

export!(Forger);
