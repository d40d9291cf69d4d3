//! One of those who read what is fetched: each at its own pace, from the chunks and then from the stored entry.

use super::{End, Fill};
use bytes::Bytes;
use http::HeaderMap;
use std::sync::Arc;

/// The answer ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// One reader's place in a body.
#[derive(Debug)]
pub struct Reader {
    pub(super) fill: Arc<Fill>,
    /// The number of the chunk that comes next, and of its first byte.
    pub(super) next: u64,
    pub(super) at: u64,
}

impl Reader {
    /// The next bytes, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        let fill = Arc::clone(&self.fill);
        fill.wait(|fill| self.look(fill)).await
    }

    fn look(&mut self, fill: &Fill) -> Option<Result<Option<Bytes>, Broken>> {
        let mut state = fill.state.lock();
        if let Some(span) = &state.body {
            let piece = span.entry.body.slices(span.start.saturating_add(self.at), span.end).next();
            self.at = self.at.saturating_add(piece.as_ref().map_or(0, |piece| u64::try_from(piece.len()).unwrap_or(0)));
            return Some(Ok(piece));
        }
        if state.assembling {
            return None;
        }
        let index = usize::try_from(self.next.saturating_sub(state.first)).unwrap_or(usize::MAX);
        if let Some(chunk) = state.chunks.get(index).cloned() {
            state.leave(self.next, true);
            self.next = self.next.saturating_add(1);
            self.at = self.at.saturating_add(u64::try_from(chunk.len()).unwrap_or(0));
            if !state.keep {
                fill.trim(&mut state);
                drop(state);
                fill.drained.notify_one();
            }
            return Some(Ok(Some(chunk)));
        }
        match state.end {
            Some(End::Complete) => Some(Ok(None)),
            Some(End::Broken) => Some(Err(Broken)),
            None => None,
        }
    }

    pub fn trailers(&self) -> Option<HeaderMap> {
        self.fill.state.lock().trailers.clone()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.fill.state.lock();
        state.leave(self.next, false);
        state.live = state.live.saturating_sub(1);
        self.fill.trim(&mut state);
        drop(state);
        self.fill.drained.notify_one();
    }
}
