"""How is a WSGI application served?"""
