//! The packet table in this machine's kernel. Needs root.

use lb_tests::packets;

/// Of the one million that the verifier follows at most.
const MOST_INSTRUCTIONS: u32 = 50_000;

#[test]
fn every_case_comes_out_as_written() {
    let summary = packets::run();
    println!("{} cases", summary.cases);
    assert!(summary.failed.is_empty(), "{}", summary.failed.join("\n"));
    assert!(summary.cases >= 40, "only {} cases", summary.cases);
    assert_eq!(summary.programs.len(), 4, "{:?}", summary.programs);
    for (name, verified) in &summary.programs {
        println!("{name}: {verified} instructions verified");
        assert!(*verified <= MOST_INSTRUCTIONS, "{name} takes {verified}");
    }
}

#[test]
fn every_case_fails_when_a_byte_is_wrong() {
    let summary = packets::run_spoiled();
    assert!(summary.cases >= 40, "only {} cases", summary.cases);
    assert_eq!(summary.failed.len(), summary.cases, "{}", summary.failed.join("\n"));
}
