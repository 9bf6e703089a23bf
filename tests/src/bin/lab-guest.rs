//! `/init` of the virtual machines that `cargo xtask vm-test` boots.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Powering off is this program's last act: started by mistake on a real machine it must do nothing.
    if std::process::id() != 1 {
        eprintln!("lab-guest is the init of the virtual machines of `cargo xtask vm-test`; it does nothing elsewhere");
        return ExitCode::from(2);
    }
    match lb_tests::guest::boot() {
        Ok(never) => match never {},
        // The kernel panics when its init ends; the host shows the end of the console.
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
