use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::door::Inside;

pin_project! {
    /// The response's body, which keeps its request in flight until it has ended or is dropped.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    #[derive(Debug)]
    enum Kind<B> {
        /// The service's own.
        Counted { #[pin] body: B, inside: Option<Inside> },
        /// Of a request that was turned away.
        Text { text: Option<Bytes> },
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn counted(body: B, inside: Option<Inside>) -> Self {
        Self { kind: Kind::Counted { body, inside } }
    }

    pub(super) fn text(text: Bytes) -> Self {
        Self { kind: Kind::Text { text: Some(text) } }
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProj::Counted { body, inside } => {
                let frame = ready!(body.poll_frame(cx));
                if !matches!(frame, Some(Ok(_))) {
                    // The end, by itself or by an error. A server may keep the body longer.
                    *inside = None;
                }
                Poll::Ready(frame)
            }
            KindProj::Text { text } => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Counted { body, .. } => body.is_end_stream(),
            Kind::Text { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Counted { body, .. } => body.size_hint(),
            Kind::Text { text } => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}
