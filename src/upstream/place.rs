//! On which runtime a connection was opened, which is where its socket is watched and whoever waits for it is woken.

use std::cell::Cell;

/// The runtime of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// One of the edge's, by its number.
    Edge(usize),
    /// One that may end before others do.
    Apart,
}

thread_local! {
    static HERE: Cell<Place> = const { Cell::new(Place::Edge(0)) };
}

/// This thread has a runtime that may end before the edge's do: a connection that was opened on it is of no use then, so that those of
/// such threads and those of the edge are never exchanged.
pub fn apart() {
    HERE.set(Place::Apart);
}

/// This thread is that of a worker of the edge which has a runtime of its own. A connection that was opened on it is taken before
/// others: those wake their own worker first.
pub fn at_home(worker: usize) {
    HERE.set(Place::Edge(worker));
}

impl Place {
    /// That of this thread.
    pub fn here() -> Self {
        HERE.get()
    }

    /// Whether what was opened here can be used there.
    pub fn lends_to(self, there: Place) -> bool {
        matches!((self, there), (Place::Edge(_), Place::Edge(_)) | (Place::Apart, Place::Apart))
    }
}
