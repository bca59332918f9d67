//! See `backstay_simulator::virt_v2v`.

fn main() -> std::process::ExitCode {
    backstay_simulator::virt_v2v::main()
}
