"""Login lockout: five wrong passwords, and the name is locked for fifteen minutes, however many guesses come at once.

The call: ``increment(name, ttl=900)``, and only then the comparison. To read the number, compare, check the password
and add one afterwards lets every guess through that is sent meanwhile. The ttl begins with the first guess and is not
renewed, so nobody can lock somebody else out for ever with one guess a minute.
"""

from flask import Flask, abort, request
from werkzeug.security import check_password_hash, generate_password_hash

from state_manager.flask import SharedState

app = Flask(__name__)
guesses = SharedState(app).dict("login-guesses")
passwords = {"alice": generate_password_hash("correct horse")}


@app.post("/login/<name>")
def login(name: str) -> str:
    if guesses.increment(name, ttl=900) > 5:
        abort(429)
    if not check_password_hash(passwords.get(name, ""), request.form["password"]):
        abort(403)
    guesses.delete(name)
    return f"Welcome, {name}."
