//! How often keys were asked for lately, in a fixed piece of memory: the frequency sketch of TinyLFU (Einziger, Friedman and
//! Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017). A count-min sketch of counters up to 15; when it has seen ten
//! times as many keys as it has counters, all of them are halved, so that the past fades.

/// Each key has one counter in each of four rows; the least of them is its frequency, never too low.
const ROWS: u32 = 4;
const COUNT_MAX: u8 = 15;

#[derive(Debug)]
pub struct Sketch {
    counters: Box<[u8]>,
    mask: u64,
    seen: u64,
}

impl Sketch {
    /// `width`: counters in a row, rounded up to a power of two.
    pub fn new(width: usize) -> Self {
        let width = width.next_power_of_two();
        let size = width.saturating_mul(4);
        Sketch { counters: vec![0; size].into(), mask: u64::try_from(width.saturating_sub(1)).unwrap_or(0), seen: 0 }
    }

    pub fn increment(&mut self, hash: u64) {
        for row in 0..ROWS {
            let place = self.place(hash, row);
            if let Some(counter) = self.counters.get_mut(place) {
                *counter = counter.saturating_add(1).min(COUNT_MAX);
            }
        }
        self.seen = self.seen.saturating_add(1);
        if self.seen > self.mask.saturating_mul(10) {
            self.seen = 0;
            self.counters.iter_mut().for_each(|counter| *counter >>= 1);
        }
    }

    pub fn frequency(&self, hash: u64) -> u8 {
        (0..ROWS).filter_map(|row| self.counters.get(self.place(hash, row)).copied()).min().unwrap_or(0)
    }

    fn place(&self, hash: u64, row: u32) -> usize {
        // The hash is of good quality; other bits of it do for another function.
        let column = hash.rotate_right(row.saturating_mul(16)) & self.mask;
        let start = u64::from(row).saturating_mul(self.mask.saturating_add(1));
        usize::try_from(start.saturating_add(column)).unwrap_or(0)
    }

    pub fn bytes(&self) -> usize {
        self.counters.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_often_is_told_from_what_is_not_and_the_past_fades() {
        let mut sketch = Sketch::new(1024);
        let often = 0x0123_4567_89ab_cdef;
        (0..8).for_each(|_| sketch.increment(often));
        sketch.increment(42);
        assert!(sketch.frequency(often) >= 8 && sketch.frequency(42) < 8);
        let mut other = fastrand::Rng::with_seed(7);
        (0..10_240).for_each(|_| sketch.increment(other.u64(..)));
        assert!(sketch.frequency(often) < 15, "halved at least once");
    }
}
