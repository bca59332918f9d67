//! `backstay completions` and `backstay man`: made from the command line itself.

use std::path::Path;

use crate::cli::command_line;
use crate::db::print;
use crate::trouble::Trouble;

/// Prints completions for a shell.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Trouble> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command_line(), "backstay", &mut text);
    print(&String::from_utf8_lossy(&text));
    Ok(())
}

/// Writes a page for the program and one for each of its commands.
pub(crate) fn pages(folder: &Path) -> Result<(), Trouble> {
    std::fs::create_dir_all(folder).map_err(Trouble::file("Making", folder))?;
    clap_mangen::generate_to(command_line(), folder).map_err(Trouble::file("Writing into", folder))?;
    print(&format!("The pages are in {}.\n", folder.display()));
    Ok(())
}
