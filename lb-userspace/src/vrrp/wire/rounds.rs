//! A list that is gone through again and again, each time as far as there is room.

use std::ops::ControlFlow;

#[derive(Debug)]
pub(super) struct Rounds<T> {
    all: Vec<T>,
    next: usize,
}

impl<T> Default for Rounds<T> {
    fn default() -> Self {
        Self { all: Vec::new(), next: 0 }
    }
}

impl<T: Copy> Rounds<T> {
    /// In place of the list; it is gone on with at the same place.
    pub(super) fn set(&mut self, all: Vec<T>) {
        self.all = all;
    }

    /// Begins at the first again.
    pub(super) fn restart(&mut self) {
        self.next = 0;
    }

    /// Hands each over once, until `each` breaks off: that one is the first of the next time.
    pub(super) fn go_on(&mut self, mut each: impl FnMut(T) -> ControlFlow<()>) {
        for _ in 0..self.all.len() {
            self.next %= self.all.len();
            if each(self.all[self.next]).is_break() {
                return;
            }
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is handed over where there is room for so many.
    fn taken(rounds: &mut Rounds<u8>, room: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        rounds.go_on(|one| {
            if taken.len() == room {
                return ControlFlow::Break(());
            }
            taken.push(one);
            ControlFlow::Continue(())
        });
        taken
    }

    #[test]
    fn who_found_no_room_is_the_first_of_the_next_time() {
        let mut rounds = Rounds::default();
        assert!(taken(&mut rounds, 3).is_empty());
        rounds.set(vec![1, 2, 3, 4, 5]);
        assert_eq!(taken(&mut rounds, 3), [1, 2, 3]);
        assert_eq!(taken(&mut rounds, 3), [4, 5, 1]);
        assert_eq!(taken(&mut rounds, 9), [2, 3, 4, 5, 1]);
        assert!(taken(&mut rounds, 0).is_empty());
        rounds.restart();
        assert_eq!(taken(&mut rounds, 2), [1, 2]);
        rounds.set(vec![7]);
        assert_eq!(taken(&mut rounds, 2), [7]);
    }
}
