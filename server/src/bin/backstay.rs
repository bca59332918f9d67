//! The program `backstay`.

use std::process::ExitCode;

fn main() -> ExitCode {
    backstay_server::main()
}
