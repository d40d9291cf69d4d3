//! What outlives a reload.
//!
//! Counters, endpoint health and breakers belong to the thing that they describe, not to the snapshot that happens to use
//! it. A snapshot asks the pool for its state by a key that holds identity plus whatever changes the *meaning* of the
//! state; the same key gives the same state, so that a reload keeps it. The pool holds only `Weak`s: state that no
//! snapshot uses any more is freed with the last one.

use parking_lot::Mutex;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

type Slot = Weak<dyn Any + Send + Sync>;

/// Shared by every snapshot of one process. Used while compiling only, never on the request path.
#[derive(Default)]
pub struct StatePool {
    slots: Mutex<HashMap<(TypeId, String), Slot>>,
}

impl StatePool {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The state under `key`, made by `make` if no snapshot holds one. Keys of different types never meet.
    pub fn get_or_create<T: Any + Send + Sync>(&self, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
        match self.try_get_or_create(key, || Ok::<T, std::convert::Infallible>(make())) {
            Ok(state) => state,
            Err(never) => match never {},
        }
    }

    /// The same for state that can fail to be made, such as an open file.
    pub fn try_get_or_create<T: Any + Send + Sync, E>(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let mut slots = self.slots.lock();
        let id = (TypeId::of::<T>(), key.to_owned());
        if let Some(found) = slots.get(&id).and_then(Weak::upgrade)
            && let Ok(state) = found.downcast::<T>()
        {
            return Ok(state);
        }
        let state = Arc::new(make()?);
        let erased: Arc<dyn Any + Send + Sync> = state.clone();
        slots.insert(id, Arc::downgrade(&erased));
        Ok(state)
    }

    /// Every live state of one type with its key, in no order. For expositions such as `/metrics`.
    pub fn live<T: Any + Send + Sync>(&self) -> Vec<(String, Arc<T>)> {
        let slots = self.slots.lock();
        let of_type = slots.iter().filter(|((kind, _), _)| *kind == TypeId::of::<T>());
        of_type.filter_map(|((_, key), slot)| Some((key.clone(), slot.upgrade()?.downcast().ok()?))).collect()
    }

    /// Forgets the keys whose state is gone. Called after a swap, so that a long life of reloads leaves nothing behind.
    pub fn sweep(&self) {
        self.slots.lock().retain(|_, slot| slot.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_gives_the_same_state_while_it_is_held() {
        let pool = StatePool::new();
        let first = pool.get_or_create("a", || 1_u32);
        let second = pool.get_or_create("a", || 2_u32);
        assert_eq!((*first, *second), (1, 1));
        assert_eq!(*pool.get_or_create("a", || 3_u64), 3, "another type is another state");
        drop((first, second));
        pool.sweep();
        assert_eq!(*pool.get_or_create("a", || 4_u32), 4);
    }
}
