//! An answer of the upstream's that a client may read for as long as its credential is good.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Error,
    body::{Body, Bytes},
};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{UNAUTHORIZED, auth::Identity};

/// The same body, which breaks off a while after the credential ended.
pub(super) fn body(body: Body, identity: &Identity) -> Body {
    Body::new(Lent { body, shut_out: Box::pin(identity.grace_over()) })
}

struct Lent {
    body: Body,
    shut_out: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.shut_out.as_mut().poll(cx).is_ready() {
            // An end would pass for the whole answer.
            return Poll::Ready(Some(Err(Error::new(UNAUTHORIZED))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
