//! What to try while the demo stays up.

use std::path::Path;

use super::centre::Centre;
use super::part::input;
use crate::serve::{FIRST_TOKEN, Server};
use crate::trouble::Trouble;

/// The machine that nobody has moved: it has eight disks.
const LEFT: &str = "archive-01";

/// Where everything is, and commands that work as they stand here.
pub(super) async fn invitation(
    server: &Server,
    centre: &Centre,
    folder: &Path,
) -> Result<Vec<String>, Trouble> {
    let asked = centre.look(|estate| input(LEFT, false, "5m", false, estate))?;
    let file = folder.join(format!("{LEFT}.json"));
    std::fs::write(&file, format!("{asked:#}\n")).map_err(Trouble::file("Writing", &file))?;
    let token = folder.join(FIRST_TOKEN);
    let token = std::fs::read_to_string(&token).map_err(Trouble::file("Reading", &token))?;
    let backstay =
        std::env::current_exe().map_or_else(|_| "backstay".into(), |path| path.display().to_string());
    let (url, token, file, control) = (&server.url, token.trim(), file.display(), centre.control_url());
    let text = format!(
        "
It stays up until Ctrl-C. The API is at {url}, and the truth about the data centre at {control}/truth.
The token is good for this demo alone. In another terminal:

  export BACKSTAY_SERVER={url} BACKSTAY_TOKEN={token}
  backstay() {{ '{backstay}' \"$@\"; }}

  backstay run list
  backstay run start failover --input {file} --dry-run     # a rehearsal with eight disks
  RUN=$(backstay run start failover --input {file}); backstay run watch $RUN
  backstay run rollback $RUN --why 'seen enough'
  curl -s {control}/truth
"
    );
    Ok(text.lines().map(str::to_owned).collect())
}
