"""Flask: / is hello JSON, /io sleeps 10 ms, /slow sleeps 200 ms."""

import time

from flask import Flask, jsonify

app = Flask(__name__)


@app.get("/")
def hello():
    return jsonify(message="Hello, World!")


@app.get("/io")
def io():
    time.sleep(0.01)
    return jsonify(message="Hello, World!")


@app.get("/slow")
def slow():
    time.sleep(0.2)
    return jsonify(message="Hello, World!")
