"""The ranks of a script: `begin` joins this process's, `session` also leaves them again."""

from .launch.session import begin as begin
from .launch.session import session as session
