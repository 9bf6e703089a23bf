//! Waiting for a condition with a deadline: what tests do where others sleep.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How often a condition is looked at again: short beside anything a test waits for, long beside one look.
const STEP: Duration = Duration::from_millis(5);

/// A condition that did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("waited {waited:?} in vain for {what}")]
pub struct Late {
    pub what: String,
    pub waited: Duration,
}

/// Asks `condition` until it gives a value, for `limit` at most.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T, Late> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            return Err(Late { what: what.to_owned(), waited: limit });
        }
        thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_or_the_name_of_what_did_not_come() {
        let mut asked = 0;
        let third = until("the third look", Duration::from_secs(5), || {
            asked += 1;
            (asked == 3).then_some(asked)
        });
        assert_eq!(third.unwrap(), 3);

        let late = until("a pig that flies", Duration::ZERO, || None::<()>).unwrap_err();
        assert_eq!(late.to_string(), "waited 0ns in vain for a pig that flies");
    }
}
