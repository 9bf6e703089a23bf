//! What came of a reload, or would: the JSON of `POST /v1/reload` and of `POST /v1/compare`, and its table.

use serde::{Deserialize, Serialize};

use super::table::{columns, one_cell};
use crate::config::{Difference, Effect};

const HEADER: &str = "SETTING\tNOW\tTHEN\tEFFECT";

/// A configuration was judged, and perhaps taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub verdict: Verdict,
    /// Between the configuration that runs, or ran, and this one. Empty if there is a mistake in this one.
    pub differences: Vec<Difference>,
    /// Why not, and what to do about it.
    pub problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds now.
    Applied,
    /// It would, if it were asked for.
    Possible,
    /// It has mistakes, does not fit this host, or needs a restart; the one before goes on.
    Refused,
    /// It was begun and went wrong; the one before goes on.
    Failed,
}

impl Outcome {
    /// The differences in columns, and what came of them.
    pub fn table(&self) -> String {
        let line = |difference: &Difference| {
            let Difference { setting, now, then, effect } = difference;
            let value = |value: &Option<String>| value.as_deref().map_or("-".to_owned(), one_cell);
            [one_cell(setting), value(now), value(then), Effect::text(*effect).to_owned()].join("\t")
        };
        let mut text = match &self.differences[..] {
            [] => String::new(),
            differences => columns(HEADER, differences.iter().map(line)),
        };
        text += match (self.verdict, &self.differences[..]) {
            (Verdict::Applied, []) => "nothing is different\n",
            (Verdict::Applied, _) => "applied\n",
            (Verdict::Possible, []) => "nothing is different: a reload would change nothing\n",
            (Verdict::Possible, _) => "a reload would apply this\n",
            // The problem is told apart.
            (Verdict::Refused | Verdict::Failed, _) => "",
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_in_columns() {
        let difference = |setting: &str, now: Option<&str>, then: Option<&str>, effect| Difference {
            setting: setting.to_owned(),
            now: now.map(str::to_owned),
            then: then.map(str::to_owned),
            effect,
        };
        let differences = vec![
            difference("a", Some("1"), Some("2\t3"), Effect::AtOnce),
            difference("b", None, Some("4"), Effect::AfterCheck),
            difference("c", Some("5"), None, Effect::Drains),
        ];
        let outcome = Outcome { verdict: Verdict::Possible, differences, problem: None };
        assert_eq!(
            outcome.table(),
            "\
SETTING  NOW  THEN  EFFECT
a        1    2 3   at once
b        -    4     takes connections when its check succeeds
c        5    -     no new connections, its own go on for `drain`
a reload would apply this
"
        );
        let nothing = Outcome { verdict: Verdict::Applied, differences: Vec::new(), problem: None };
        assert_eq!(nothing.table(), "nothing is different\n");
        let json = serde_json::to_string(&outcome).unwrap();
        assert!(json.contains(r#""effect":"after-check""#), "{json}");
        assert_eq!(serde_json::from_str::<Outcome>(&json).unwrap(), outcome);
    }
}
