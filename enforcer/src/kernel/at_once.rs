//! Loading many programs: the kernel verifies each by itself, which takes most of a start.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// More of the node's processors than this are left alone.
const MOST: usize = 4;

/// Does `each` for all items, on several processors, and returns what came of them in order; or the failure of the first
/// of those that failed.
pub(super) fn at_once<T: Send, R: Send, E: Send>(
    items: Vec<T>,
    each: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let (all, done) = (
        Mutex::new(items.into_iter().enumerate()),
        Mutex::new(vec![]),
    );
    thread::scope(|scope| {
        for _ in 0..threads.min(MOST) {
            scope.spawn(|| {
                // Nobody panics while it is locked.
                let next = || all.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some((index, item)) = next() {
                    let result = (index, each(item));
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push(result);
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_done_and_the_first_failure_told() {
        let double = |it: u32| Ok::<_, u32>(2 * it);
        let all = (0..100).map(|it| 2 * it).collect();
        assert_eq!(at_once((0..100).collect(), double), Ok(all));
        assert_eq!(at_once(vec![], double), Ok(vec![]));
        let fails_from_40 = |it| if it < 40 { Ok(it) } else { Err(it) };
        assert_eq!(at_once((0..100).collect(), fails_from_40), Err(40));
    }
}
