"""The web page: five tabs on Gradio, in English and Chinese. All state is the server's; a reload loses nothing."""
